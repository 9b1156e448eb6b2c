# SPDX-License-Identifier: Apache-2.0
"""Freehand compounding: tracked pictures fill a volume as the probe sweeps.

Every pixel goes into the voxels around it (trilinear weights) or into the one that it lies in (nearest); a voxel is the
weighted mean of all that came into it. The volume grows with the sweep, on a fixed lattice of the reference frame.
References: Solberg et al. 2007, doi:10.1016/j.ultrasmedbio.2007.02.015 (pixel-based methods); Trobaugh et al. 1994,
doi:10.1016/0895-6111(94)90004-3.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from appliance.frames import Affine

# Compiled when this file is imported, for just these types: nothing is compiled when frames come.
_Picture = types.Array(types.float32, 2, "C", readonly=True)
_Matrix, _Sums, _Voxels = types.float64[:, ::1], types.uint64[:, :, ::1], types.uint8[:, :, ::1]


def _compiled(*signature: object) -> Any:
    return numba.njit(signature, nogil=True, cache=True, error_model="numpy")


Sums = NDArray[np.uint64]  # (z, y, x): weighted grey levels in the upper half of each word, weights in the lower
Voxels = NDArray[np.uint8]

_UNIT = np.uint64(512)  # weight of a whole pixel: eighths along each axis
_FULL = np.uint64(1 << 24)  # weight from which on a voxel forgets half: 255 times as much fits. 32,768 pixels
_LOW_HALF, _HALF_BITS, _ONE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(1)
_ROUNDING = 1e-3  # of a voxel: corners are computed another way than pixels
_MARGIN = 16  # voxels grown beyond what a picture needs
WHITE = 255


@numba.njit(nogil=True, cache=True, inline="always")
def _add(sums, k, j, i, grey, weight):  # type: ignore[no-untyped-def]
    both = sums[k, j, i]
    if both & _LOW_HALF >= _FULL:
        both = (both >> _HALF_BITS >> _ONE << _HALF_BITS) | ((both & _LOW_HALF) >> _ONE)
    sums[k, j, i] = both + (grey * weight << _HALF_BITS | weight)


@_compiled(_Picture, _Matrix, types.float32, types.boolean, _Sums)
def _insert(image, to_voxel, gain, linear, sums):  # type: ignore[no-untyped-def]
    """Add float32 (y, x) at to_voxel (3, 4), index (x, y, 0) to voxel (x, y, z); return how many pixels lay outside."""
    n_z, n_y, n_x = sums.shape
    n_outside = 0
    for row in range(image.shape[0]):
        x0 = to_voxel[0, 1] * row + to_voxel[0, 3]
        y0 = to_voxel[1, 1] * row + to_voxel[1, 3]
        z0 = to_voxel[2, 1] * row + to_voxel[2, 3]
        for column in range(image.shape[1]):
            value = image[row, column] * gain
            if not np.isfinite(value):
                continue
            grey = np.uint64(min(max(value + np.float32(0.5), np.float32(0)), np.float32(255)))
            x = x0 + to_voxel[0, 0] * column
            y = y0 + to_voxel[1, 0] * column
            z = z0 + to_voxel[2, 0] * column
            if not linear:
                i, j, k = int(np.floor(x + 0.5)), int(np.floor(y + 0.5)), int(np.floor(z + 0.5))
                if i < 0 or j < 0 or k < 0 or i >= n_x or j >= n_y or k >= n_z:
                    n_outside += 1
                    continue
                _add(sums, k, j, i, grey, _UNIT)
                continue
            i, j, k = int(x), int(y), int(z)  # as floor does, for what is not negative
            if x < 0 or y < 0 or z < 0 or i >= n_x - 1 or j >= n_y - 1 or k >= n_z - 1:
                n_outside += 1
                continue
            fx, fy, fz = int((x - i) * 8 + 0.5), int((y - j) * 8 + 0.5), int((z - k) * 8 + 0.5)
            for dz in range(2):
                wz = fz if dz else 8 - fz
                for dy in range(2):
                    wzy = wz * (fy if dy else 8 - fy)
                    if wzy == 0:
                        continue
                    if fx < 8:
                        _add(sums, k + dz, j + dy, i, grey, np.uint64(wzy * (8 - fx)))
                    if fx > 0:
                        _add(sums, k + dz, j + dy, i + 1, grey, np.uint64(wzy * fx))
    return n_outside


@_compiled(_Sums, _Voxels)
def _average(sums, out):  # type: ignore[no-untyped-def]
    """Write the means into uint8 (z, y, x), 0 where nothing came; return how many voxels have one."""
    n_filled = 0
    for k in range(sums.shape[0]):
        for j in range(sums.shape[1]):
            for i in range(sums.shape[2]):
                weight = sums[k, j, i] & _LOW_HALF
                if weight:
                    n_filled += 1
                    out[k, j, i] = ((sums[k, j, i] >> _HALF_BITS) + (weight >> _ONE)) // weight
                else:
                    out[k, j, i] = 0
    return n_filled


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _nearest(sums, given, k, j, i, dz, dy, dx, reach):  # type: ignore[no-untyped-def]
    """How many steps away the next voxel is that has a value, 0 where there is none within `reach`; and its value."""
    for step in range(1, reach + 1):
        k, j, i = k + dz, j + dy, i + dx
        if k < 0 or j < 0 or i < 0 or k >= given.shape[0] or j >= given.shape[1] or i >= given.shape[2]:
            return 0, 0
        if sums[k, j, i]:
            return step, int(given[k, j, i])
    return 0, 0


@_compiled(_Sums, _Voxels, types.int64, types.int64[:, ::1], _Voxels)
def _fill(sums, given, reach, directions, out):  # type: ignore[no-untyped-def]
    """Fill empty voxels of `out` along the shortest line between two that `given` has; return how many."""
    shape, n_filled = given.shape, 0
    for k in range(shape[0]):
        for j in range(shape[1]):
            for i in range(shape[2]):
                if sums[k, j, i]:
                    continue
                best = 2 * reach + 1
                for d in range(directions.shape[0]):
                    dz, dy, dx = directions[d, 0], directions[d, 1], directions[d, 2]
                    ahead, value_ahead = _nearest(sums, given, k, j, i, dz, dy, dx, reach)
                    if ahead == 0 or ahead >= best:
                        continue
                    behind, value_behind = _nearest(sums, given, k, j, i, -dz, -dy, -dx, reach)
                    if behind == 0 or ahead + behind >= best:
                        continue
                    best = ahead + behind
                    out[k, j, i] = (value_ahead * behind + value_behind * ahead + best // 2) // best
                n_filled += best <= 2 * reach
    return n_filled


# One of each pair of opposite neighbours.
_DIRECTIONS = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)])


class Compound:
    """One volume. LPS mm of the reference frame; voxel index (x, y, z) plus `low` times `spacing_mm` from `anchor_mm`.

    Parameters
    ----------
    spacing_mm
        Edge of a voxel.
    most_voxels
        It grows no further; 8 bytes each.
    method
        "linear" (smoother, slower) or "nearest".
    anchor_mm
        The centre of a voxel.
    """

    def __init__(
        self,
        spacing_mm: float,
        most_voxels: int,
        method: Literal["linear", "nearest"] = "linear",
        anchor_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        self._spacing_mm, self._most_voxels, self._linear = spacing_mm, most_voxels, method == "linear"
        self._anchor_mm = np.array(anchor_mm)
        self._low = np.zeros(3, np.int64)  # (x, y, z) of the first voxel, on the lattice
        self._sums: Sums = np.zeros((0, 0, 0), np.uint64)

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""
        return self._sums.shape

    @property
    def affine(self) -> Affine:
        """Voxel index (x, y, z) to LPS mm."""
        affine = np.diag([*[self._spacing_mm] * 3, 1.0])
        affine[:3, 3] = self._anchor_mm + self._low * self._spacing_mm
        return affine

    def add(self, image: NDArray[np.float32], affine: Affine, gain: float = 1.0) -> bool:
        """Insert a picture, (y, x), pixel index to LPS mm; False where some of it lies outside and the volume is full.

        Grey levels are multiplied by `gain`, rounded and clipped to 0…255; those that are not finite are left out.
        """
        to_lattice = affine[:3].copy()
        to_lattice[:, 3] -= self._anchor_mm
        to_lattice /= self._spacing_mm
        self._make_room(_corners(image.shape, to_lattice))
        to_lattice[:, 3] -= self._low
        if not self._sums.size:
            return False
        pixels = np.ascontiguousarray(image, np.float32)
        return bool(_insert(pixels, to_lattice, np.float32(gain), self._linear, self._sums) == 0)

    def average(self) -> tuple[Voxels, float]:
        """Return (volume, filled): uint8 (z, y, x), and the part of it that has a measured value."""
        out: Voxels = np.empty(self.shape, np.uint8)
        n_filled = _average(self._sums, out)
        return out, n_filled / max(1, out.size)

    def fill_holes(self, volume: Voxels, reach: int) -> tuple[Voxels, float]:
        """Return (copy, filled): small holes of an `average` filled between the nearest values on both sides.

        Only between: at most `reach` voxels away each, along the shortest of 13 lines. Nothing grows outwards.
        """
        out = volume.copy()
        n_filled = _fill(self._sums, volume, reach, _DIRECTIONS, out)
        return out, n_filled / max(1, out.size)

    def _make_room(self, corners: NDArray[np.float64]) -> None:
        """Grow so that `corners` (n, 3), lattice (x, y, z), lie inside; not beyond `most_voxels`."""
        low = np.floor(corners.min(axis=0) - _ROUNDING).astype(np.int64)
        high = np.ceil(corners.max(axis=0) + _ROUNDING).astype(np.int64) + 2
        have = np.array(self.shape[::-1], np.int64)
        if have.all():
            inside = (low >= self._low) & (high <= self._low + have)
            if inside.all():
                return
            low, high = np.minimum(low, self._low), np.maximum(high, self._low + have)
            ahead = _MARGIN * (low < self._low), _MARGIN * (high > self._low + have)
            if self._fits(low - ahead[0], high + ahead[1]):
                low, high = low - ahead[0], high + ahead[1]
        if not self._fits(low, high):
            return
        grown = np.zeros((high - low)[::-1], np.uint64)
        if have.all():
            x, y, z = self._low - low
            grown[z : z + have[2], y : y + have[1], x : x + have[0]] = self._sums
        self._low, self._sums = low, grown

    def _fits(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> bool:
        return float(np.prod((high - low).astype(np.float64))) <= self._most_voxels


def _corners(shape: tuple[int, ...], to_lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    y, x = shape[0] - 1, shape[1] - 1
    index = np.array([[0, 0, 0, 1], [x, 0, 0, 1], [0, y, 0, 1], [x, y, 0, 1]], np.float64)
    return np.asarray(index @ to_lattice.T)
