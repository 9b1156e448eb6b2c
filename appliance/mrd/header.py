# SPDX-License-Identifier: Apache-2.0
"""The MRD header: its XML to what the pipeline needs, and the other way for simulated scanners."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, SubElement, tostring

from appliance.errors import PeerError
from appliance.frames import Encoding, Identity
from appliance.mrd.xml_tree import parse_xml

_WHERE = "mrd header"
_LARGEST_MATRIX = 16384
_COUNTERS = ("slice", "repetition", "phase", "contrast", "set", "average")
_CALIBRATION: dict[str, Literal["none", "embedded", "separate"]] = {
    "embedded": "embedded",
    "separate": "separate",
    "external": "separate",
    "interleaved": "none",  # calibrates from neighbouring frames, which no stage of ours does
}


@dataclass(frozen=True)
class MrdHeader:
    """What one header says.

    Line numbers on the wire plus `ky_shift` are indices of the encoded matrix with the k-space centre at
    ``n // 2``; `ky_first` and `ky_last` (inclusive) are such indices. `encoding.n_coils` is 0 when not announced.
    `unsupported` says why raw data with this header cannot be reconstructed; finished images still can be taken.
    """

    encoding: Encoding
    identity: Identity
    trajectory: str
    ky_shift: int
    ky_first: int
    ky_last: int
    n_frames: int | None
    unsupported: str


def parse_header(xml: bytes) -> MrdHeader:
    """Read the header. Raises PeerError naming the element that is missing or makes no sense."""
    root = parse_xml(xml.rstrip(b"\0 \r\n\t"), _WHERE)
    if root.tag != "ismrmrdHeader":
        raise PeerError(f"{_WHERE}: root element is {root.tag[:40]!r}; expected 'ismrmrdHeader'")
    encoding = root.find("encoding")
    if encoding is None:
        raise PeerError(f"{_WHERE}: encoding is missing; a scan cannot be reconstructed without it")
    described = _encoding(root, encoding)
    shift, first, last = _lines(encoding, described.encoded_matrix[1])
    return MrdHeader(
        encoding=described,
        identity=_identity(root),
        trajectory=_text(encoding, "trajectory").lower(),
        ky_shift=shift,
        ky_first=first,
        ky_last=last,
        n_frames=_n_frames(encoding),
        unsupported=_unsupported(encoding, described),
    )


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(element: Element, path: str) -> float | None:
    text = _text(element, path)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise PeerError(f"{_WHERE}: {path} is not a number: {text[:40]!r}") from None
    if not math.isfinite(value):
        raise PeerError(f"{_WHERE}: {path} is not finite: {text[:40]!r}")
    return value


def _whole(element: Element, path: str, default: int, least: int, most: int) -> int:
    value = _number(element, path)
    if value is None:
        return default
    if value != int(value) or not least <= value <= most:
        raise PeerError(f"{_WHERE}: {path} is {value:g}; a whole number from {least} to {most} is expected")
    return int(value)


def _matrix(encoding: Element, space: str) -> tuple[int, int, int]:
    sizes = []
    for axis in "xyz":
        path = f"{space}/matrixSize/{axis}"
        if not _text(encoding, path):
            raise PeerError(f"{_WHERE}: encoding/{path} is missing; a scan cannot be reconstructed without it")
        sizes.append(_whole(encoding, path, 0, 1, _LARGEST_MATRIX))
    return sizes[0], sizes[1], sizes[2]


def _fov_mm(encoding: Element, space: str) -> tuple[float, float, float]:
    sizes = []
    for axis in "xyz":
        path = f"{space}/fieldOfView_mm/{axis}"
        value = _number(encoding, path)
        if value is None:
            raise PeerError(f"{_WHERE}: encoding/{path} is missing; the image would have no size")
        if not 0 < value <= 10_000:
            raise PeerError(f"{_WHERE}: encoding/{path} is {value:g} mm; more than 0 and at most 10000 is expected")
        sizes.append(value)
    return sizes[0], sizes[1], sizes[2]


def _unsupported(encoding: Element, described: Encoding) -> str:
    trajectory = _text(encoding, "trajectory").lower()
    if trajectory not in ("cartesian", "epi"):
        return (
            f"{_WHERE}: trajectory {trajectory[:40]!r} is not supported; send 2D Cartesian data ('cartesian' or 'epi')"
        )
    n_partitions = described.encoded_matrix[2]
    if n_partitions > 1 or _whole(encoding, "parallelImaging/accelerationFactor/kspace_encoding_step_2", 1, 1, 64) > 1:
        return f"{_WHERE}: 3D encoding ({n_partitions} partitions) is not supported; send 2D slices"
    return ""


def _encoding(root: Element, encoding: Element) -> Encoding:
    encoded = _matrix(encoding, "encodedSpace")
    acceleration = _whole(encoding, "parallelImaging/accelerationFactor/kspace_encoding_step_1", 1, 1, 64)
    mode = _text(encoding, "parallelImaging/calibrationMode").lower()
    return Encoding(
        encoded_matrix=encoded,
        recon_matrix=_matrix(encoding, "reconSpace"),
        encoded_fov_mm=_fov_mm(encoding, "encodedSpace"),
        recon_fov_mm=_fov_mm(encoding, "reconSpace"),
        n_coils=_whole(root, "acquisitionSystemInformation/receiverChannels", 0, 0, 1024),
        acceleration_y=acceleration,
        calibration=_CALIBRATION.get(mode, "embedded") if acceleration > 1 else "none",
        tr_ms=_number(root, "sequenceParameters/TR"),
        te_ms=_number(root, "sequenceParameters/TE"),
        flip_deg=_number(root, "sequenceParameters/flipAngle_deg"),
        field_strength_t=_number(root, "acquisitionSystemInformation/systemFieldStrength_T"),
        frequency_hz=_number(root, "experimentalConditions/H1resonanceFrequency_Hz"),
        sequence_name=_text(root, "measurementInformation/sequenceName"),
        protocol_name=_text(root, "measurementInformation/protocolName"),
        series_number=_whole(root, "measurementInformation/initialSeriesNumber", 0, 0, 2**31 - 1) or None,
        patient_position=_text(root, "measurementInformation/patientPosition") or "HFS",
        manufacturer=_text(root, "acquisitionSystemInformation/systemVendor"),
        model_name=_text(root, "acquisitionSystemInformation/systemModel"),
        station_name=_text(root, "acquisitionSystemInformation/stationName"),
        institution=_text(root, "acquisitionSystemInformation/institutionName"),
    )


def _lines(encoding: Element, n_lines: int) -> tuple[int, int, int]:
    """Return (shift, first, last): see `MrdHeader`."""
    limits = "encodingLimits/kspace_encoding_step_1"
    first = _whole(encoding, f"{limits}/minimum", 0, 0, 65535)
    last = _whole(encoding, f"{limits}/maximum", n_lines - 1, 0, 65535)
    centre = _whole(encoding, f"{limits}/center", n_lines // 2, 0, 65535)
    if centre == 0 and last < n_lines and last > 0:
        centre = n_lines // 2  # left at zero by clients that do not fill it in
    shift = n_lines // 2 - centre
    if not 0 <= first + shift <= last + shift < n_lines:
        raise PeerError(
            f"{_WHERE}: {limits} {first} to {last} with centre {centre} do not fit into {n_lines} encoded lines"
        )
    return shift, first + shift, last + shift


def _n_frames(encoding: Element) -> int | None:
    limits = encoding.find("encodingLimits")
    if limits is None or limits.find("repetition") is None:
        return None
    return math.prod(_whole(limits, f"{counter}/maximum", 0, 0, 65535) + 1 for counter in _COUNTERS)


def _identity(root: Element) -> Identity:
    sex = _text(root, "subjectInformation/patientGender").upper()
    return Identity(
        patient_id=_text(root, "subjectInformation/patientID"),
        patient_name=_text(root, "subjectInformation/patientName"),
        birth_date=_digits(_text(root, "subjectInformation/patientBirthdate"), 8),
        sex=sex if sex in ("M", "F", "O") else "",
        accession_number=_text(root, "studyInformation/accessionNumber"),
        study_instance_uid=_uid(_text(root, "studyInformation/studyInstanceUID")),
        frame_of_reference_uid=_uid(_text(root, "measurementInformation/frameOfReferenceUID")),
        study_date=_digits(_text(root, "studyInformation/studyDate"), 8),
        study_time=_digits(_text(root, "studyInformation/studyTime"), 6),
        study_description=_text(root, "studyInformation/studyDescription"),
        referring_physician=_text(root, "studyInformation/referringPhysicianName"),
    )


def _digits(text: str, n: int) -> str:
    """Return an XML date or time as DICOM writes it; empty when it is neither."""
    digits = text.replace("-", "").replace(":", "")[:n]
    return digits if len(digits) == n and digits.isascii() and digits.isdigit() else ""


def _uid(text: str) -> str:
    return text if re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+", text, re.ASCII) and len(text) <= 64 else ""


def encode_header_xml(encoding: Encoding, identity: Identity | None = None, n_frames: int | None = None) -> bytes:
    """Write the header of a simulated 2D Cartesian scan whose frames are repetitions; the reverse of `parse_header`."""
    root = Element("ismrmrdHeader", xmlns="http://www.ismrm.org/ISMRMRD")
    who = identity or Identity()
    _add(root, "subjectInformation", patientName=who.patient_name, patientID=who.patient_id, patientGender=who.sex)
    study = {"studyDescription": who.study_description, "studyInstanceUID": who.study_instance_uid}
    _add(root, "studyInformation", **study)
    measurement = {
        "patientPosition": encoding.patient_position,
        "protocolName": encoding.protocol_name,
        "sequenceName": encoding.sequence_name,
        "frameOfReferenceUID": who.frame_of_reference_uid,
    }
    _add(root, "measurementInformation", **measurement)
    system = {
        "systemVendor": encoding.manufacturer,
        "systemModel": encoding.model_name,
        "systemFieldStrength_T": encoding.field_strength_t,
        "receiverChannels": encoding.n_coils,
    }
    _add(root, "acquisitionSystemInformation", **system)
    _add(root, "experimentalConditions", H1resonanceFrequency_Hz=int(encoding.frequency_hz or 127_740_000))
    _add_encoding(root, encoding, n_frames)
    times = {"TR": encoding.tr_ms, "TE": encoding.te_ms, "flipAngle_deg": encoding.flip_deg}
    _add(root, "sequenceParameters", **times)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _add(parent: Element, tag: str, **fields: object) -> Element:
    element = SubElement(parent, tag)
    for name, value in fields.items():
        if value not in ("", None):
            SubElement(element, name).text = str(value)
    if fields and len(element) == 0:
        parent.remove(element)
    return element


def _add_encoding(root: Element, encoding: Encoding, n_frames: int | None) -> None:
    element = _add(root, "encoding")
    spaces = {
        "encodedSpace": (encoding.encoded_matrix, encoding.encoded_fov_mm),
        "reconSpace": (encoding.recon_matrix, encoding.recon_fov_mm),
    }
    for name, (matrix, fov_mm) in spaces.items():
        space = _add(element, name)
        _add(space, "matrixSize", **dict(zip("xyz", matrix, strict=True)))
        _add(space, "fieldOfView_mm", **dict(zip("xyz", fov_mm, strict=True)))
    limits = _add(element, "encodingLimits")
    n_lines = encoding.encoded_matrix[1]
    _add(limits, "kspace_encoding_step_1", minimum=0, maximum=n_lines - 1, center=n_lines // 2)
    if n_frames is not None:
        _add(limits, "repetition", minimum=0, maximum=n_frames - 1, center=0)
    SubElement(element, "trajectory").text = "cartesian"
    if encoding.acceleration_y > 1:
        parallel = _add(element, "parallelImaging")
        factors = {"kspace_encoding_step_1": encoding.acceleration_y, "kspace_encoding_step_2": 1}
        _add(parallel, "accelerationFactor", **factors)
        SubElement(parallel, "calibrationMode").text = encoding.calibration
