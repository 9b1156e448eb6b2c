# SPDX-License-Identifier: Apache-2.0
"""Stack parallel slices of MR and CT into a volume as they arrive; the newest slice of a place replaces the older.

Slices may step along any one direction: that of a CT gantry's tilt makes a sheared volume, and its affine says so
exactly. Uneven steps are interpolated to even ones along that direction, and a remark says so. A hole that is much
longer than the steps around it is not bridged.
Reference: PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from appliance.frames import Affine, Frame
from appliance.imaging.assembled import Assembled

Slice = NDArray[np.int16]
Picture = NDArray[np.float32]
Vector = NDArray[np.float64]

_SAME_MM = 0.01  # closer slices are one place
_PARALLEL = 1e-3  # largest difference between two directions' components
_EVEN = 0.02  # of the mean step, and
_EVEN_MM = 0.02
_ASIDE_PX = 0.5  # a slice may lie beside the line of the others
_HOLE, _HOLE_MM = 3.0, 10.0  # steps beyond both, of the median, are not bridged
_FINEST = 4  # times as many slices as came, at most
_RANGE, _LOOKED_AT = (1.0, 99.5), 100_000  # percentiles worth showing, of so many voxels
_LOWEST, _HIGHEST = -32768, 32767


_Plane = types.int16[:, ::1]


@numba.njit((_Plane, _Plane, types.float32, _Plane), nogil=True, cache=True, error_model="numpy")
def _blend(before, after, share, out):  # type: ignore[no-untyped-def]
    """Write the slice `share` of the way from one to the next, int16 (y, x)."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            a, b = np.float32(before[row, column]), np.float32(after[row, column])
            out[row, column] = np.int16(np.floor(a + (b - a) * share + np.float32(0.5)))


class SliceStack:
    """One scan's slices, 4 bytes a voxel. A volume holds HU, or grey levels with one scale for all; see `Assembler`."""

    def __init__(self, most_voxels: int, *, hounsfield: bool) -> None:
        self._most_voxels, self._hounsfield = most_voxels, hounsfield
        self._slices: dict[int, tuple[Picture, Vector]] = {}  # by place: pixels, centre of the first
        self._axes = np.zeros((3, 3))  # columns: steps of row and column in mm, normal
        self._thick_mm = 1.0
        self._shape: tuple[int, ...] = ()
        self._what = (0, 0)  # contrast and set

    def add(self, frame: Frame) -> str:
        """Put a slice, or each of a (z, y, x) slab, where it belongs, in place of an older one there."""
        what = (frame.position.contrast, frame.position.set)
        if self._slices and what != self._what:
            return "it is of another contrast than the first slice"
        self._what = what
        affine, reasons = frame.affine.copy(), []
        for image in np.asarray(frame.array, np.float32).reshape(-1, *frame.array.shape[-2:]):
            reasons.append(self._add(image, affine))
            affine[:3, 3] += affine[:3, 2]
        return next(filter(None, reasons), "")

    def _add(self, image: Picture, affine: Affine) -> str:
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        if not np.isfinite(affine).all() or not np.linalg.norm(normal) > 0:
            return "it does not say where it lies"
        axes = np.stack([affine[:3, 0], affine[:3, 1], normal / np.linalg.norm(normal)], axis=1)
        if not self._slices:
            self._axes, self._shape, self._thick_mm = axes, image.shape, float(np.linalg.norm(affine[:3, 2])) or 1.0
        if image.shape != self._shape or np.abs(axes - self._axes).max() > _PARALLEL:
            return "it is not parallel to the first slice, or of another size"
        return self._put(image, affine[:3, 3].copy())

    def assembled(self, *, complete: bool) -> Assembled | None:
        """Return the slices at even steps."""
        del complete
        if not self._slices:
            return None
        places = sorted(self._slices)
        pictures, at_mm = [self._slices[place][0] for place in places], self._at_mm(places)
        slices, scale, clipped = _stored(pictures, hounsfield=self._hounsfield)
        volume, step_mm, filled, remark = even_slices(slices, at_mm, self._most_voxels)
        affine = np.eye(4)
        affine[:3, :2], affine[:3, 3] = self._axes[:, :2], self._slices[places[0]][1]
        affine[:3, 2] = self._direction() * (step_mm or self._thick_mm)
        remarks = tuple(filter(None, (clipped, remark)))
        return Assembled(volume, affine, _window(volume), 1 / scale, 0.0, filled, remarks)

    def _put(self, image: Picture, origin: Vector) -> str:
        place = round(float(origin @ self._axes[:, 2]) / _SAME_MM)
        if place not in self._slices and (len(self._slices) + 1) * image.size > self._most_voxels:
            return f"the volume is full, at {len(self._slices)} slices"
        if len(self._slices) > 1:
            first = self._slices[min(self._slices)][1]
            aside = origin - first - self._direction() * float((origin - first) @ self._axes[:, 2])
            pixel_mm = np.linalg.norm(self._axes[:, :2], axis=0).min()
            if np.linalg.norm(aside) > _ASIDE_PX * pixel_mm:
                return f"it lies {np.linalg.norm(aside):.1f} mm beside the line of the other slices"
        self._slices[place] = (image, origin)
        return ""

    def _direction(self) -> Vector:
        """The way from slice to slice for each mm along the normal."""
        low, high = (self._slices[place][1] for place in (min(self._slices), max(self._slices)))
        along_mm = float((high - low) @ self._axes[:, 2])
        return np.asarray((high - low) / along_mm if along_mm > _SAME_MM else self._axes[:, 2])

    def _at_mm(self, places: list[int]) -> Vector:
        origins = np.array([self._slices[place][1] for place in places])
        return np.asarray((origins - origins[0]) @ self._axes[:, 2])


def _stored(pictures: list[Picture], *, hounsfield: bool) -> tuple[list[Slice], float, str]:
    """Return (slices, scale, remark): int16, what float values were multiplied by, and whether any were cut off."""
    brightest = max(float(np.max(np.abs(each), initial=0, where=np.isfinite(each))) for each in pictures)
    scale = 1.0 if hounsfield or not brightest else _HIGHEST / brightest
    slices = []
    for each in pictures:
        scaled = np.nan_to_num(each * np.float32(scale), nan=_LOWEST, posinf=_HIGHEST, neginf=_LOWEST)
        slices.append(np.clip(np.round(scaled), _LOWEST, _HIGHEST).astype(np.int16))
    remark = "some pixels are brighter than the volume can hold" if brightest * scale > _HIGHEST + 0.5 else ""
    return slices, scale, remark


def even_slices(slices: list[Slice], at_mm: Vector, most_voxels: int) -> tuple[Slice, float, float, str]:
    """Return (volume, step in mm, part that was measured, remark) of slices at ascending `at_mm`.

    As they are where their steps are even, else interpolated. The step is 0 for a single slice.
    """
    steps_mm = np.diff(at_mm)
    if not len(steps_mm):
        return slices[0][None].copy(), 0.0, 1.0, ""
    mean_mm = float(steps_mm.mean())
    if np.abs(steps_mm - mean_mm).max() <= _EVEN * mean_mm + _EVEN_MM:
        return np.stack(slices), mean_mm, 1.0, ""
    n = min(round(at_mm[-1] / steps_mm.min()) + 1, _FINEST * len(slices), most_voxels // slices[0].size)
    hole_mm = max(_HOLE * float(np.median(steps_mm)), _HOLE_MM)
    volume = np.full((max(n, 2), *slices[0].shape), _LOWEST, np.int16)
    n_measured = 0
    for z, here_mm in enumerate(np.linspace(0, at_mm[-1], len(volume))):
        after = min(max(int(np.searchsorted(at_mm, here_mm)), 1), len(slices) - 1)
        share = (here_mm - at_mm[after - 1]) / steps_mm[after - 1]
        if steps_mm[after - 1] <= hole_mm or min(share, 1 - share) < 1e-9:
            _blend(slices[after - 1], slices[after], np.float32(share), volume[z])
            n_measured += 1
    remark = f"slices are {steps_mm.min():.1f} to {steps_mm.max():.1f} mm apart: what lies between is interpolated"
    return volume, float(at_mm[-1] / (len(volume) - 1)), n_measured / len(volume), remark


def _window(volume: Slice) -> tuple[float, float]:
    """Where the values lie that are worth showing."""
    values = volume.ravel()[:: max(1, volume.size // _LOOKED_AT)]
    values = values[values > _LOWEST]
    low, high = np.percentile(values, _RANGE).tolist() if values.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0
