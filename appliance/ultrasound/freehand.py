# SPDX-License-Identifier: Apache-2.0
"""One tracked ultrasound scan as a volume: which frames go in, at which grey levels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.frames import Frame
from appliance.imaging.assembled import Assembled
from appliance.ultrasound.compound import WHITE, Compound

_OVERSHOOT = 1.2  # filters leave a display's white a little brighter than it was


class Freehand:
    """See `Assembler`.

    `clip_px` is (x, y, width, height) of the part of the picture that is taken; empty: all. At the end small holes are
    filled, up to `fill_voxels` from a measured value; 0: none.
    """

    def __init__(self, compound: Compound, clip_px: Sequence[int] = (), fill_voxels: int = 0) -> None:
        self._compound, self._clip_px, self._fill_voxels = compound, clip_px, fill_voxels
        self._slope = 0.0  # until a frame decides
        self._full = self._clipped = False

    def add(self, frame: Frame) -> str:
        """Insert a frame that has a place in the room; no other."""
        if frame.tracking is None or frame.tracking.image_to_reference is None:
            return "without a place"
        image, affine = np.asarray(frame.array, np.float32), frame.affine.copy()
        if image.ndim != 2 or not np.isfinite(affine).all():
            return "without a plane"
        if self._clip_px:
            x, y, width, height = self._clip_px
            image = image[y : y + height, x : x + width]
            affine[:3, 3] += affine[:3, :2] @ (x, y)
        if not image.size:
            return "outside of clip_px"
        brightest = float(np.max(image, initial=0, where=np.isfinite(image)))
        if not self._slope and brightest > 0:
            self._slope = max(1.0, 2 ** float(np.ceil(np.log2(brightest / (_OVERSHOOT * WHITE)))))
        self._clipped |= brightest > _OVERSHOOT * WHITE * (self._slope or 1.0)
        self._full |= not self._compound.add(image, affine, 1 / (self._slope or 1.0))
        return ""

    def assembled(self, *, complete: bool) -> Assembled | None:
        """Return the mean of what came into each voxel."""
        if not all(self._compound.shape):
            return None
        volume, filled = self._compound.average()
        remarks = ["the volume is full: the sweep goes beyond it"] if self._full else []
        remarks += ["some pixels are brighter than the volume can hold"] if self._clipped else []
        if complete and self._fill_voxels:
            volume, holes = self._compound.fill_holes(volume, self._fill_voxels)
            remarks += [f"{100 * holes:.1f} % of the volume is filled between measured voxels"] if holes else []
        return Assembled(
            volume, self._compound.affine, (0.0, float(WHITE)), self._slope or 1.0, 0.0, filled, tuple(remarks)
        )
