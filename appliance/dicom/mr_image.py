# SPDX-License-Identifier: Apache-2.0
"""MR Image Storage objects of one spooled image (PS3.3 A.4): reconstructed, and denoised with its source."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.uid import ImplicitVRLittleEndian, MRImageStorage

import appliance
from appliance.buffer import NewInstance
from appliance.dicom import values
from appliance.dicom.spool import DENOISED, RECONSTRUCTED, Spooled
from appliance.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, is_uid, uid_for
from appliance.errors import PeerError
from appliance.frames import Affine, Applied, Encoding, Identity
from appliance.imaging.quantise import remarks, to_uint16

RESEARCH_USE = "For research use only. Not for diagnosis."

_NOT_ORTHOGONAL = 1e-4  # cosine; PS3.3 C.7.6.2.1.1 asks for orthogonal rows and columns
_SERIES_STEP = {RECONSTRUCTED: 1, DENOISED: 2}


def steps_of(spooled: Spooled, kind: str) -> tuple[Applied, ...]:
    """Give the provenance of one series: all of it, or up to `reconstruct` for the image before denoising.

    An image that came reconstructed from the scanner and was not denoised has none of our steps but detection.
    """
    steps = spooled.frame.provenance
    if kind == DENOISED:
        return steps
    names = [step.operator.partition(":")[0] for step in steps]  # "reconstruct:fallback" reconstructs too
    return steps[: names.index("reconstruct") + 1] if "reconstruct" in names else ()


def _local(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 1000 / 1e6).astimezone()


@dataclass(frozen=True)
class _Series:
    """What is the same in every object of a series: one scan, one kind, one set of steps and models."""

    scan_id: str
    started_ns: int
    identity: Identity = field(repr=False)
    encoding: Encoding | None
    kind: str
    steps: tuple[Applied, ...]

    @property
    def study_uid(self) -> str:
        given = self.identity.study_instance_uid
        return given if is_uid(given) else uid_for("study", self.scan_id, self.started_ns)

    @property
    def frame_of_reference_uid(self) -> str:
        given = self.identity.frame_of_reference_uid
        return given if is_uid(given) else uid_for("frame of reference", self.scan_id, self.started_ns)

    @cached_property
    def uid(self) -> str:
        # Whether only detection was skipped for a frame must not part it from its series.
        steps = [list(asdict(step).values()) for step in self.steps if step.altered]
        return uid_for("series", self.scan_id, self.started_ns, self.kind, steps)

    def instance_uid(self, sequence: int) -> str:
        return uid_for("instance", self.uid, sequence)


@lru_cache(maxsize=16)
def _series_of(
    scan_id: str, started_ns: int, identity: Identity, encoding: Encoding | None, kind: str, steps: tuple[Applied, ...]
) -> _Series:
    return _Series(scan_id, started_ns, identity, encoding, kind, steps)


def _series(spooled: Spooled, kind: str) -> _Series:
    scan = spooled.scan
    return _series_of(scan.scan_id, scan.started_ns, scan.identity, scan.encoding, kind, steps_of(spooled, kind))


def _patient_and_study(ds: Dataset, series: _Series) -> None:
    identity, started = series.identity, _local(series.started_ns)
    ds.PatientName = values.person_name(identity.patient_name)
    ds.PatientID = values.text(identity.patient_id)
    ds.PatientBirthDate = values.date(identity.birth_date)
    ds.PatientSex = values.sex(identity.sex)
    ds.StudyInstanceUID = series.study_uid
    ds.StudyDate = values.date(identity.study_date) or started.strftime("%Y%m%d")
    ds.StudyTime = values.time(identity.study_time) or started.strftime("%H%M%S")
    ds.ReferringPhysicianName = values.person_name(identity.referring_physician)
    ds.StudyID = ""
    ds.AccessionNumber = values.text(identity.accession_number, 16)
    if identity.study_description:
        ds.StudyDescription = values.text(identity.study_description)


def _general_series(ds: Dataset, series: _Series) -> None:
    encoding, started = series.encoding, _local(series.started_ns)
    number = encoding.series_number if encoding and encoding.series_number else 0
    protocol = values.text(encoding.protocol_name) if encoding else ""
    ds.Modality = "MR"
    ds.SeriesInstanceUID = series.uid
    ds.SeriesNumber = number * 100 + _SERIES_STEP[series.kind]
    ds.SeriesDate, ds.SeriesTime = started.strftime("%Y%m%d"), started.strftime("%H%M%S")
    ds.SeriesDescription = values.text(f"{protocol[:35]} {series.kind} (research)")
    if protocol:
        ds.ProtocolName = protocol
    ds.PatientPosition = values.patient_position(encoding.patient_position) if encoding else ""
    ds.Laterality = ""  # type 2C: the body part may be paired, nobody tells us
    ds.FrameOfReferenceUID = series.frame_of_reference_uid
    ds.PositionReferenceIndicator = ""


def _equipment(ds: Dataset, encoding: Encoding | None) -> None:
    ds.Manufacturer = values.text(encoding.manufacturer) if encoding else ""
    if encoding is None:
        return
    for keyword, value, longest in (
        ("ManufacturerModelName", encoding.model_name, 64),
        ("InstitutionName", encoding.institution, 64),
        ("StationName", encoding.station_name, 16),
    ):
        if value:
            setattr(ds, keyword, values.text(value, longest))


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def _contribution(model: str, versions: list[str], description: list[str]) -> Dataset:
    ds = Dataset()
    ds.PurposeOfReferenceCodeSequence = [_code("109102", "DCM", "Processing Equipment")]
    ds.Manufacturer = "nearscan"
    ds.ManufacturerModelName = values.text(model)
    ds.SoftwareVersions = [values.text(version) for version in versions if version]
    ds.ContributionDescription = values.paragraphs(description, 1024)
    return ds


def _contributions(steps: tuple[Applied, ...]) -> list[Dataset]:
    whole = _contribution("nearscan", [appliance.__version__], [RESEARCH_USE])
    return [whole] + [
        _contribution(
            step.operator,
            [step.version, step.model],
            [
                f"operator {step.operator} {step.version}, settings {step.settings_hash}",
                step.model and f"model {step.model}, digest {step.model_digest}",
                step.engine_digest and f"engine digest {step.engine_digest}",
            ],
        )
        for step in steps
    ]


def geometry(affine: Affine) -> tuple[list[float], list[float], list[float], float]:
    """Give ImagePositionPatient, ImageOrientationPatient, PixelSpacing (rows apart first) and slice thickness in mm.

    `affine` takes voxel (x, y, z, 1) to its centre in LPS mm. Raises PeerError when it is no image plane.

    References: PS3.3 C.7.6.2.1.1
    """
    if not np.isfinite(affine).all():
        raise PeerError("mr_image: the affine is not finite; the source gave no geometry")
    x, y, z = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    dx, dy = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if dx <= 0 or dy <= 0 or abs(x @ y) > _NOT_ORTHOGONAL * dx * dy:
        raise PeerError("mr_image: the affine's rows and columns are not orthogonal; the source gave a wrong geometry")
    return [*affine[:3, 3]], [*(x / dx), *(y / dy)], [dy, dx], float(np.linalg.norm(z))


def _plane(ds: Dataset, affine: Affine) -> None:
    position, orientation, spacing, thickness = geometry(affine)
    ds.ImagePositionPatient = [values.decimal(value) for value in position]
    ds.ImageOrientationPatient = [values.decimal(value) for value in orientation]
    ds.PixelSpacing = [values.decimal(value) for value in spacing]
    ds.SliceThickness = values.decimal(thickness or None)


def _acquisition(ds: Dataset, encoding: Encoding | None) -> None:
    ds.ScanningSequence, ds.SequenceVariant = "RM", "NONE"  # research mode: the raw data stream does not say
    ds.ScanOptions, ds.MRAcquisitionType, ds.EchoTrainLength = "", "2D", ""
    ds.RepetitionTime = values.decimal(encoding.tr_ms if encoding else None)
    ds.EchoTime = values.decimal(encoding.te_ms if encoding else None)
    if encoding is None:
        return
    if encoding.flip_deg is not None:
        ds.FlipAngle = values.decimal(encoding.flip_deg)
    if encoding.field_strength_t is not None:
        ds.MagneticFieldStrength = values.decimal(encoding.field_strength_t)
    if encoding.frequency_hz is not None:
        ds.ImagingFrequency = values.decimal(encoding.frequency_hz / 1e6)
    if encoding.sequence_name:
        ds.SequenceName = values.text(encoding.sequence_name, 16)
    ds.InPlanePhaseEncodingDirection = "COL"  # phase encoding runs along y everywhere in nearscan
    ds.AcquisitionMatrix = [0, encoding.encoded_matrix[0], encoding.encoded_matrix[1], 0]


def _comments(spooled: Spooled, cost: tuple[str, ...]) -> str:
    lines = []
    for mark in spooled.frame.marks:
        told = mark.reason.startswith(("UNPROCESSED", "INCOMPLETE"))
        lines.append(mark.reason if told else f"UNPROCESSED: {mark.stage}: {mark.reason}")
    lines += [f"{finding.severity.upper()}: {finding.message}" for finding in spooled.frame.findings]
    return values.paragraphs([*lines, *cost, RESEARCH_USE], 10240)


def _kind_of_image(ds: Dataset, series: _Series) -> None:
    ds.ImageType = ["ORIGINAL" if series.kind == RECONSTRUCTED else "DERIVED", "PRIMARY", "OTHER"]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, 0
    if series.kind == DENOISED:
        steps = [f"{step.operator} {step.version} {step.model}".strip() for step in series.steps]
        ds.DerivationDescription = values.paragraphs([f"{RESEARCH_USE} Processed by: {'; '.join(steps)}"], 1024)


@lru_cache(maxsize=16)
def _same_elements(series: _Series) -> dict[int, bytes]:
    """Encode what every object of `series` holds; most of the work, done once."""
    ds = Dataset()
    ds.SpecificCharacterSet, ds.SOPClassUID = "ISO_IR 192", MRImageStorage
    _patient_and_study(ds, series)
    _general_series(ds, series)
    _equipment(ds, series.encoding)
    _acquisition(ds, series.encoding)
    _kind_of_image(ds, series)
    ds.ContributingEquipmentSequence = _contributions(series.steps)
    return _encoded(ds)


def _image(ds: Dataset, spooled: Spooled, image: NDArray[Any]) -> None:
    stored, n_clipped = to_uint16(image, spooled.scale)
    ds.ImageComments = _comments(spooled, remarks(stored, n_clipped))
    ds.Rows, ds.Columns = stored.shape
    black, white = (value * spooled.scale for value in spooled.window)
    ds.WindowCenter = values.decimal((black + white) / 2)
    ds.WindowWidth = values.decimal(max(white - black, 1.0))  # at least 1: PS3.3 C.11.2.1.2
    pixels = stored.astype("<u2", copy=False).tobytes()
    ds.add_new("PixelData", "OW", pixels)


def _instance_and_times(ds: Dataset, spooled: Spooled, series: _Series) -> None:
    frame, acquired, created = spooled.frame, _local(spooled.frame.acquired_ns), _local(spooled.spooled_ns)
    ds.SOPInstanceUID = series.instance_uid(frame.sequence)
    ds.InstanceCreationDate, ds.InstanceCreationTime = created.strftime("%Y%m%d"), created.strftime("%H%M%S")
    ds.InstanceNumber = frame.sequence + 1
    ds.AcquisitionNumber = ds.TemporalPositionIdentifier = frame.position.repetition + 1
    ds.AcquisitionDate = ds.ContentDate = acquired.strftime("%Y%m%d")
    ds.AcquisitionTime = ds.ContentTime = acquired.strftime("%H%M%S.%f")
    ds.AcquisitionDateTime = acquired.strftime("%Y%m%d%H%M%S.%f%z")


def _reference(uid: str) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = MRImageStorage, uid
    return ds


def _derived_from(ds: Dataset, source: _Series, sequence: int) -> None:
    uid = source.instance_uid(sequence)
    image, series = _reference(uid), Dataset()
    image.PurposeOfReferenceCodeSequence = [_code("121322", "DCM", "Source image for image processing operation")]
    ds.SourceImageSequence = [image]
    series.SeriesInstanceUID = source.uid
    series.ReferencedInstanceSequence = [_reference(uid)]
    ds.ReferencedSeriesSequence = [series]


def _encoded(ds: Dataset) -> dict[int, bytes]:
    """Encode each top-level element by itself."""
    elements = {}
    for element in ds:
        file = DicomBytesIO()
        file.is_little_endian, file.is_implicit_VR = True, True
        write_data_element(file, element, ["utf8"])
        elements[int(element.tag)] = file.getvalue()
    return elements


def _file(sop_instance_uid: str, elements: dict[int, bytes]) -> bytes:
    """Give the Part 10 file. Implicit VR: the one transfer syntax that every peer must take (PS3.5 10.1)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, sop_instance_uid
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    head = BytesIO()
    write_file_meta_info(head, meta)
    return b"".join([bytes(128), b"DICM", head.getvalue(), *(elements[tag] for tag in sorted(elements))])


def instances(spooled: Spooled, priority: int) -> list[NewInstance]:
    """Build what one spooled image becomes in PACS. Raises PeerError when it has no valid object."""
    return [_instance(spooled, kind, priority) for kind in spooled.images]


def _instance(spooled: Spooled, kind: str, priority: int) -> NewInstance:
    series, ds = _series(spooled, kind), Dataset()
    _instance_and_times(ds, spooled, series)
    _plane(ds, spooled.frame.affine)
    _image(ds, spooled, spooled.images[kind])
    if kind == DENOISED and RECONSTRUCTED in spooled.images:
        _derived_from(ds, _series(spooled, RECONSTRUCTED), spooled.frame.sequence)
    uid = str(ds.SOPInstanceUID)
    return NewInstance(
        _file(uid, {**_same_elements(series), **_encoded(ds)}),
        str(MRImageStorage),
        uid,
        str(ImplicitVRLittleEndian),
        destinations=spooled.destinations,
        priority=priority,
        scan_id=spooled.scan.scan_id,
        lineage={
            "kind": kind,
            "sequence": spooled.frame.sequence,
            "scale": spooled.scale,
            "steps": [vars(step) for step in series.steps],
            "took_ms": dict(spooled.frame.took_ms),
        },
    )
