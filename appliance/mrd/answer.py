# SPDX-License-Identifier: Apache-2.0
"""A finished frame as an MRD image for the scanner."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import to_host
from appliance.frames import Frame
from appliance.imaging.quantise import ScanScale, remarks, to_uint16
from appliance.mrd.geometry import Placement, placement
from appliance.mrd.messages import ACQUISITION_HEADER, IMAGE_HEADER, IMAGE_TYPE_MAGNITUDE, encode_image
from appliance.mrd.meta import encode_meta

_COUNTERS = ("slice", "repetition", "phase", "contrast", "set", "average")
_KEPT = (
    "measurement_uid",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
    "user_int",
    "user_float",
)


def image_head(frame: Frame, place: Placement) -> np.void:
    """Return the image header for `frame`, (y, x): what the scanner sent, with what has changed."""
    head: np.void = np.zeros(1, IMAGE_HEADER)[0]
    sent = frame.attachments.get("mrd_header")
    if sent is not None and sent.nbytes == IMAGE_HEADER.itemsize:
        head = np.frombuffer(sent.tobytes(), IMAGE_HEADER)[0].copy()
    else:
        head["version"], head["image_series_index"] = 1, 1
        if sent is not None and sent.nbytes == ACQUISITION_HEADER.itemsize:
            acquisition = np.frombuffer(sent.tobytes(), ACQUISITION_HEADER)[0]
            for name in _KEPT:
                head[name] = acquisition[name]
    for name in _COUNTERS:
        head[name] = getattr(frame.position, name)
    for name in ("position", "read_dir", "phase_dir", "slice_dir"):
        head[name] = getattr(place, name)
    head["field_of_view"] = place.fov_mm
    head["image_type"] = IMAGE_TYPE_MAGNITUDE
    head["image_index"] = (frame.sequence + 1) & 0xFFFF  # counts on from 0 in scans longer than the field can say
    return head


def image_meta(
    frame: Frame, place: Placement, window: tuple[float, float], series_suffix: str, remarks: tuple[str, ...] = ()
) -> dict[str, list[str]]:
    """Return the meta attributes for `frame`. `window` is (centre, width) in units of the pixels sent."""
    comments = [f"{mark.stage}: {mark.reason}" for mark in frame.marks]
    comments += [finding.message for finding in frame.findings]
    meta = {
        "DataRole": ["Image"],
        "ImageProcessingHistory": ["nearscan", *(applied.operator for applied in frame.provenance)],
        "SequenceDescriptionAdditional": [series_suffix],
        "WindowCenter": [f"{window[0]:.6g}"],
        "WindowWidth": [f"{window[1]:.6g}"],
        "ImageRowDir": [f"{cosine:.7f}" for cosine in place.read_dir],
        "ImageColumnDir": [f"{cosine:.7f}" for cosine in place.phase_dir],
        "Keep_image_geometry": ["1"],
    }
    if comments or remarks:
        meta["ImageComments"] = [*comments, *remarks]
    return meta


def place_of(frame: Frame) -> Placement:
    """Return where `frame` lies. Raises ValueError when it is not one image."""
    if frame.axes != ("y", "x"):
        raise ValueError(f"mrd answer: expected axes ('y', 'x'), got {frame.axes}; put reconstruct before it")
    return placement(frame.affine, frame.array.shape)


class AnswerEncoder:
    """Images of one scan as messages, with one scale and one window, both from its first image."""

    def __init__(self, data_type: Literal["uint16", "float32"], series_suffix: str) -> None:
        self._data_type = data_type
        self._series_suffix = series_suffix
        self._scale = ScanScale()
        self._window = (0.0, 1.0)

    def encode(self, frame: Frame) -> bytes:
        """Return the IMAGE message for `frame`, (y, x), any device."""
        place = place_of(frame)
        image = to_host(frame.array)
        first = not self._scale.decided
        scale = self._scale.of(image)
        if self._data_type == "float32":
            scale = 1.0
        if first:
            brightest = float(np.percentile(image, 99.5)) * scale
            self._window = (brightest / 2, max(brightest, 1e-6))
        pixels: NDArray[Any] = np.ascontiguousarray(image, np.float32)
        texts: tuple[str, ...] = ()
        if self._data_type == "uint16":
            pixels, n_clipped = to_uint16(pixels, scale)
            texts = remarks(pixels, n_clipped)
        meta = image_meta(frame, place, self._window, self._series_suffix, texts)
        return encode_image(image_head(frame, place), encode_meta(meta), pixels[np.newaxis, np.newaxis])
