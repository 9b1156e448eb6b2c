# SPDX-License-Identifier: Apache-2.0
"""Scan, Frame, End: the messages of the graph.

Rule: frozen, passed by reference, arrays never written in place once emitted. One model for everything:
an MRI repetition, an ultrasound clip and a CT series are all ``Scan, Frame…, End``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = Any  # numpy.ndarray or cupy.ndarray: the array decides
Affine = NDArray[np.float64]  # (4, 4): voxel index (x, y, z, 1) -> centre of that voxel in LPS mm

IMAGE_AXES = ("y", "x")


@dataclass(frozen=True)
class Identity:
    """Who was scanned. Kept out of every repr, so that no log line can show it."""

    patient_id: str = field(default="", repr=False)
    patient_name: str = field(default="", repr=False)  # DICOM PN, "Family^Given"
    birth_date: str = field(default="", repr=False)  # YYYYMMDD
    sex: str = field(default="", repr=False)  # M, F, O or empty
    accession_number: str = field(default="", repr=False)
    study_instance_uid: str = field(default="", repr=False)
    frame_of_reference_uid: str = field(default="", repr=False)
    study_date: str = field(default="", repr=False)  # YYYYMMDD
    study_time: str = field(default="", repr=False)  # HHMMSS
    study_description: str = field(default="", repr=False)
    referring_physician: str = field(default="", repr=False)


@dataclass(frozen=True)
class Encoding:
    """How an MRI scan is encoded. Triples are (x, y, z) as in the MRD header."""

    encoded_matrix: tuple[int, int, int]
    recon_matrix: tuple[int, int, int]
    encoded_fov_mm: tuple[float, float, float]
    recon_fov_mm: tuple[float, float, float]
    n_coils: int
    acceleration_y: int = 1
    calibration: Literal["none", "embedded", "separate"] = "none"
    ky_centre: int | None = None  # index of the k-space centre line; None: encoded_matrix[1] // 2
    tr_ms: float | None = None
    te_ms: float | None = None
    flip_deg: float | None = None
    field_strength_t: float | None = None
    frequency_hz: float | None = None
    sequence_name: str = ""
    protocol_name: str = ""
    series_number: int | None = None
    patient_position: str = "HFS"
    manufacturer: str = ""
    model_name: str = ""
    station_name: str = ""
    institution: str = ""


@dataclass(frozen=True, eq=False)
class Scan:
    """Start of one acquisition.

    `scan_id` is ours (letters, digits, '-'): safe in file names and logs. `axes`, `shape` and `dtype` say what
    the frames hold; a shape entry is None where it may vary. `started_ns` is UTC. `n_frames` is the expected
    count, None when the source cannot know.
    """

    scan_id: str
    modality: Literal["MR", "CT", "US"]
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str
    started_ns: int
    source: str = ""  # who sent it, e.g. "mrd 127.0.0.1:40312"
    n_frames: int | None = None
    identity: Identity = field(default_factory=Identity)
    encoding: Encoding | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)  # what only this source knows (never identity)


@dataclass(frozen=True)
class Applied:
    """One line of provenance: what was done to a frame."""

    operator: str
    version: str
    settings_hash: str
    model: str = ""
    model_digest: str = ""
    engine_digest: str = ""
    altered: bool = True  # False: it looked only, the pixels are what they were


@dataclass(frozen=True)
class Mark:
    """Why a frame is not what the pipeline promises, e.g. Mark("denoise", "model failed its golden test")."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """One detected fault of the acquisition, in words for the technologist."""

    kind: str  # "spike", "coil_drop", "noisy_coil", "clipping", "ghosting", "signal_drop", "low_snr"
    message: str  # plain sentence: what, where, what to do
    severity: Literal["warning", "alarm"] = "warning"
    measured: float = 0.0
    threshold: float = 0.0
    where: Mapping[str, int | float] = field(default_factory=dict)  # coil=3, line=81, column=12 …


@dataclass(frozen=True)
class Position:
    """Counters of the acquisition, from 0."""

    slice: int = 0
    repetition: int = 0
    phase: int = 0
    contrast: int = 0
    set: int = 0
    average: int = 0


@dataclass(frozen=True, eq=False)
class Tracking:
    """Where the image and the tools were when a frame was acquired.

    Matrices (4, 4) are rigid and map to the reference frame, LPS mm. `image_to_reference` is None where it is not
    valid, `reason` says why; then the frame's `affine` is in the image's own frame and no place in the room.
    """

    image_to_reference: Affine | None
    reason: str = ""
    tools: Mapping[str, Affine] = field(default_factory=dict)  # by name, e.g. "Stylus"; only those that are valid


@dataclass(frozen=True, eq=False, kw_only=True)
class Frame:
    """One array on its way through the graph.

    `role` "imaging" frames become images, one to one, `sequence` 0, 1, 2, … in the order of acquisition.
    "noise" and "calibration" frames (sequence -1) prepare stages and never reach a sink.
    `acquired_ns` is UTC, `received_ns` is CLOCK_MONOTONIC when the last byte arrived (comparable between the
    processes of one machine). `original` is the image before the first image-to-image stage.

    MRI k-space: array complex64 (coil, ky, kx) holding the *acquired* lines only, ascending;
    `attachments["ky"]` int64 (n_lines,) is their index in the encoded matrix, and
    `attachments["calibration_only"]` bool (n_lines,) marks lines that only calibrate.
    After reconstruction `attachments["kspace"]` still holds that k-space for detection.
    """

    scan_id: str
    sequence: int
    array: Array
    axes: tuple[str, ...]
    affine: Affine
    acquired_ns: int
    received_ns: int
    role: Literal["imaging", "noise", "calibration"] = "imaging"
    position: Position = field(default_factory=Position)
    provenance: tuple[Applied, ...] = ()
    marks: tuple[Mark, ...] = ()
    findings: tuple[Finding, ...] = ()
    original: Array | None = None
    tracking: Tracking | None = None  # None: nothing is tracked here
    took_ms: Mapping[str, float] = field(default_factory=dict)  # by stage: how long it had this frame
    attachments: Mapping[str, Array] = field(default_factory=dict)

    @property
    def is_image(self) -> bool:
        """Whether the array is an image (… y, x) and not k-space or separate coils."""
        return self.axes[-2:] == IMAGE_AXES and "coil" not in self.axes


@dataclass(frozen=True)
class End:
    """End of an acquisition. `reason` is empty only when complete."""

    scan_id: str
    status: Literal["complete", "incomplete", "aborted"]
    reason: str = ""
    n_frames: int = 0


Message = Scan | Frame | End


def read_only(array: Array) -> Array:
    """Return `array` marked read-only where its library can (numpy); the same object."""
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array
