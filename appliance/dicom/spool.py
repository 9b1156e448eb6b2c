# SPDX-License-Identifier: Apache-2.0
"""One image on its way from the graph to DICOM: a job of the buffer, written here and read back here.

Rule: no pydicom; this runs in the graph's process, where DICOM work would ruin the latency.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.buffer import NewJob
from appliance.buffer.scans import NewScan
from appliance.frames import Applied, Encoding, Finding, Frame, Identity, Mark, Position, Scan
from appliance.imaging.quantise import ScanScale

KIND = "dicom_results"
RECONSTRUCTED, DENOISED = "reconstructed", "denoised"

_WINDOW_PERCENTILES = (1.0, 99.5)  # a few bright pixels do not darken the rest
_PLAIN = str | int | float | bool | None
_SCAN_FIELDS = ("scan_id", "modality", "started_ns", "source", "n_frames")
_FRAME_FIELDS = ("sequence", "acquired_ns", "received_ns")


@dataclass(frozen=True)
class Spooled:
    """One image of one scan, in all the series that it is kept in."""

    scan: Scan
    frame: Frame  # its array is the last of `images`
    images: Mapping[str, NDArray[Any]]  # by series kind
    scale: float  # image value -> stored value, the same for the whole scan
    window: tuple[float, float]  # image values shown black and white
    destinations: tuple[str, ...]
    spooled_ns: int


def images_to_keep(frame: Frame, series: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Choose the images of `frame` for `series`; one that was not denoised is kept as reconstructed, always."""
    if frame.original is None or frame.original is frame.array:
        return {RECONSTRUCTED: frame.array}
    both = {RECONSTRUCTED: frame.original, DENOISED: frame.array}
    return {kind: both[kind] for kind in both if kind in series}


def _window_for(image: NDArray[Any]) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, _WINDOW_PERCENTILES)
    return float(low), float(high)


class Levels:
    """Scale of one scan and window of each of its slices, both fixed by the first image: a cine must not flicker."""

    def __init__(self) -> None:
        self._scale = ScanScale()
        self._windows: dict[int, tuple[float, float]] = {}

    def of(self, image: NDArray[Any], slice_index: int) -> tuple[float, tuple[float, float]]:
        """Give (scale, window) for an image of this slice."""
        scale, window = self._scale.of(image), self._windows.get(slice_index)
        if window is None:
            window = _window_for(image)
            if self._scale.decided:
                self._windows[slice_index] = window
        return scale, window


def new_scan(scan: Scan, pipeline: str) -> NewScan:
    """Give what is kept of a scan besides its images."""
    identity, encoding = scan.identity, scan.encoding
    who = {
        "PatientName": identity.patient_name,
        "PatientID": identity.patient_id,
        "StudyDescription": identity.study_description,
        "AccessionNumber": identity.accession_number,
    }
    protocol = encoding.protocol_name if encoding else ""
    return NewScan(scan.scan_id, pipeline, scan.modality, protocol, scan.started_ns / 1e9, who)


def pack(spooled: Spooled, priority: int) -> NewJob:
    """Give the job that keeps `spooled`."""
    scan, frame = spooled.scan, spooled.frame
    meta = {
        "scan": {name: getattr(scan, name) for name in _SCAN_FIELDS}
        | {"attributes": {key: value for key, value in scan.attributes.items() if isinstance(value, _PLAIN)}},
        "identity": asdict(scan.identity),
        "encoding": None if scan.encoding is None else asdict(scan.encoding),
        "frame": {name: getattr(frame, name) for name in _FRAME_FIELDS}
        | {
            "affine": np.asarray(frame.affine).tolist(),
            "position": asdict(frame.position),
            "took_ms": dict(frame.took_ms),
        },
        "provenance": [asdict(step) for step in frame.provenance],
        "marks": [asdict(mark) for mark in frame.marks],
        "findings": [asdict(replace(finding, where=dict(finding.where))) for finding in frame.findings],
        "images": [[kind, image.dtype.str, list(image.shape)] for kind, image in spooled.images.items()],
        "scale": spooled.scale,
        "window": list(spooled.window),
        "destinations": list(spooled.destinations),
        "spooled_ns": spooled.spooled_ns,
    }
    plain = json.loads(json.dumps(meta, default=lambda number: number.item()))  # numpy's numbers become Python's
    return NewJob(KIND, plain, b"".join(image.tobytes() for image in spooled.images.values()), priority)


def _encoding(values: Mapping[str, Any] | None) -> Encoding | None:
    if values is None:
        return None
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Encoding(**fields)


def _images(entries: list[tuple[str, str, list[int]]], payload: bytes | bytearray) -> dict[str, NDArray[Any]]:
    images, offset = {}, 0
    for kind, dtype, shape in entries:
        count = int(np.prod(shape))
        images[kind] = np.frombuffer(payload, dtype, count, offset).reshape(shape)
        offset += images[kind].nbytes
    if offset != len(payload):
        raise ValueError(f"spool: expected {offset} bytes of pixels, got {len(payload)}")
    return images


def unpack(meta: Mapping[str, Any], payload: bytes | bytearray) -> Spooled:
    """Read back what `pack` wrote. Raises ValueError, KeyError or TypeError where it was not."""
    images = _images(meta["images"], payload)
    last = list(images.values())[-1]
    scan = Scan(
        **meta["scan"],
        axes=("y", "x"),
        shape=last.shape,
        dtype=str(last.dtype),
        identity=Identity(**meta["identity"]),
        encoding=_encoding(meta["encoding"]),
    )
    values = meta["frame"]
    frame = Frame(
        scan_id=scan.scan_id,
        array=last,
        axes=("y", "x"),
        affine=np.array(values["affine"], np.float64),
        position=Position(**values["position"]),
        took_ms=values.get("took_ms", {}),  # none in what an older version kept
        provenance=tuple(Applied(**step) for step in meta["provenance"]),
        marks=tuple(Mark(**mark) for mark in meta["marks"]),
        findings=tuple(Finding(**finding) for finding in meta["findings"]),
        **{name: values[name] for name in _FRAME_FIELDS},
    )
    low, high = meta["window"]
    return Spooled(scan, frame, images, meta["scale"], (low, high), tuple(meta["destinations"]), meta["spooled_ns"])
