# SPDX-License-Identifier: Apache-2.0
"""Finished images from the scanner (IMAGE messages) to frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.frames import Affine, Frame, Mark, Position, read_only
from appliance.mrd.faults import Faults
from appliance.mrd.geometry import directions_known, image_affine
from appliance.mrd.messages import IMAGE_TYPE_COMPLEX, IMAGE_TYPE_MAGNITUDE, Image

_STAGE = "mrd"


class ImageReader:
    """Frames of one scan of images: one for each z. Magnitude and complex images are taken, others counted."""

    def __init__(self, scan_id: str) -> None:
        self.faults = Faults()
        self.n_frames = 0
        self.skipped: dict[str, int] = {}
        self._scan_id = scan_id

    def add(self, image: Image, received_ns: int, acquired_ns: int) -> Iterator[Frame]:
        """Give the frames of one message. Times: monotonic and UTC, of its last byte."""
        kind = int(image.head["image_type"])
        if kind not in (0, IMAGE_TYPE_MAGNITUDE, IMAGE_TYPE_COMPLEX):  # 0: not filled in
            name = f"images of type {kind}"
            self.skipped[name] = self.skipped.get(name, 0) + 1
            self.faults.add(name, f"{name} were left out: only magnitude (1) and complex (5) are taken")
            return
        for z in range(image.data.shape[1]):
            yield self._frame(image, z, received_ns, acquired_ns)

    def _frame(self, image: Image, z: int, received_ns: int, acquired_ns: int) -> Frame:
        head = image.head
        channels = image.data[:, z]
        magnitude, finite = _magnitude(channels)
        affine, known = _affine(head, image.data.shape, z)
        marks = [] if known else [Mark(_STAGE, "the scanner sent no valid slice orientation, axial is assumed")]
        if not finite:
            marks.append(Mark(_STAGE, "pixels with NaN or Inf set to 0"))
            self.faults.add("frame", f"frame {self.n_frames}: pixels with NaN or Inf set to 0")
        attachments: dict[str, NDArray[Any]] = {"mrd_header": np.frombuffer(head.tobytes(), np.uint8)}
        if np.iscomplexobj(channels):
            kept = np.array(channels[0] if len(channels) == 1 else channels, np.complex64)
            attachments["complex"] = read_only(kept)
        sequence, self.n_frames = self.n_frames, self.n_frames + 1
        counters = ("slice", "repetition", "phase", "contrast", "set", "average")
        return Frame(
            scan_id=self._scan_id,
            sequence=sequence,
            array=read_only(magnitude),
            axes=("y", "x"),
            affine=affine,
            acquired_ns=acquired_ns,
            received_ns=received_ns,
            position=Position(**{name: int(head[name]) for name in counters}),
            marks=tuple(marks),
            attachments=attachments,
        )


def _magnitude(channels: NDArray[Any]) -> tuple[NDArray[np.float32], bool]:
    """Return the root sum of squares of (channel, y, x), and whether all of it was finite."""
    magnitude = np.abs(channels).astype(np.float32) if np.iscomplexobj(channels) else channels.astype(np.float32)
    magnitude = magnitude[0] if len(magnitude) == 1 else np.sqrt(np.square(magnitude).sum(axis=0))
    finite = np.isfinite(magnitude)
    return (magnitude, True) if finite.all() else (np.where(finite, magnitude, np.float32(0)), False)


def _affine(head: np.void, shape: tuple[int, ...], z: int) -> tuple[Affine, bool]:
    _, n_z, n_y, n_x = shape
    fov_mm = [float(size) for size in head["field_of_view"]]
    if not all(0 < size <= 10_000 for size in fov_mm[:2]):
        raise PeerError(f"mrd: image with a field of view of {fov_mm[0]:g} x {fov_mm[1]:g} mm; send its size")
    thickness = fov_mm[2] if 0 < fov_mm[2] <= 10_000 else 1.0
    position, read, phase, normal = (head[name] for name in ("position", "read_dir", "phase_dir", "slice_dir"))
    known = directions_known(read, phase) and bool(np.isfinite(position).all())
    if not known:
        position, read, phase, normal = (np.zeros(3), *np.eye(3))
    affine = image_affine(position, read, phase, normal, (fov_mm[0], fov_mm[1], thickness), (n_x, n_y, n_z))
    affine[:3, 3] += affine[:3, 2] * (z - n_z // 2)
    return read_only(affine), known
