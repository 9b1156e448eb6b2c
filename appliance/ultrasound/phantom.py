# SPDX-License-Identifier: Apache-2.0
"""A body that is known at every point, and a probe that is swept over it: for simulation and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from appliance.frames import Affine

PIXEL_MM = (0.2, 0.2)
SWEEP_MM = 40.0  # along y of the reference, to and fro
_SWEEP_S = 4.0
_CYSTS = ((0.0, 0.0, 25.0, 8.0, 20.0), (-18.0, 8.0, 35.0, 6.0, 150.0), (15.0, -10.0, 18.0, 4.0, 60.0))  # x y z r grey
_TISSUE, _BONE, _BONE_MM = 90.0, 220.0, 45.0
_CELL_MM, _N_CELLS = 0.5, 64

# The probe looks down: x of the image along x of the probe, depth along its z.
IMAGE_TO_PROBE = np.array(
    [[PIXEL_MM[0], 0, 0, -30.0], [0, 0, 0.2, 0], [0, -PIXEL_MM[1], 0, 0], [0, 0, 0, 1]], np.float64
)
_REFERENCE_TO_TRACKER = np.array([[0, -1, 0, 250.0], [1, 0, 0, -40.0], [0, 0, 1, 90.0], [0, 0, 0, 1]], np.float64)


@dataclass(frozen=True, eq=False)
class TrackedPicture:
    """What a tracked machine sends at one time: uint8 (y, x), and its transforms; None where one is not valid."""

    array: NDArray[np.uint8]
    transforms: Mapping[str, Affine | None]


def _speckle() -> NDArray[np.float32]:
    """A periodic block of speckle: the envelope of scatterers, with a mean of 1."""
    rng = np.random.default_rng(0)
    real, imaginary = (gaussian_filter(part, 1.0, mode="wrap") for part in rng.normal(size=(2, *[_N_CELLS] * 3)))
    envelope = np.hypot(real, imaginary)
    return np.asarray(envelope / envelope.mean(), np.float32)


_SPECKLE = _speckle()


def tissue(points_mm: NDArray[np.float64], *, speckle: bool = True) -> NDArray[np.float32]:
    """Return the grey level (0 to 255) at `points_mm` (3, …), reference RAS; depth is -z."""
    x, y, depth = points_mm[0], points_mm[1], -points_mm[2]
    grey = np.full(x.shape, _TISSUE, np.float32)
    for cx, cy, cz, radius, level in _CYSTS:
        grey[(x - cx) ** 2 + (y - cy) ** 2 + (depth - cz) ** 2 < radius**2] = level
    grey[np.abs(depth - _BONE_MM - 3 * np.sin(x / 8)) < 1] = _BONE
    if speckle:
        grey = grey * map_coordinates(_SPECKLE, points_mm / _CELL_MM, order=1, mode="grid-wrap")
    return np.clip(grey, 0, 255).astype(np.float32)


def probe_to_reference(time_s: float) -> Affine:
    """Return where the probe is: swept to and fro, tilted and rocked like a hand's. RAS."""
    phase = 2 * np.pi * time_s / (2 * _SWEEP_S)
    tilt, rock = 0.15 * np.sin(2 * phase), 0.1 * np.cos(3 * phase)
    a = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    b = np.array([[np.cos(rock), -np.sin(rock), 0], [np.sin(rock), np.cos(rock), 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3] = a @ b
    pose[:3, 3] = (2 * np.sin(phase), -SWEEP_MM / 2 * np.cos(phase), 0)
    return pose


def picture(time_s: float, size: tuple[int, int] = (256, 300)) -> TrackedPicture:
    """Return what the machine shows at a time; `size` is (y, x)."""
    to_reference = probe_to_reference(time_s)
    y, x = np.indices(size, np.float64)
    to_mm = to_reference @ IMAGE_TO_PROBE
    points = to_mm[:3, :2] @ np.stack([x.ravel(), y.ravel()]) + to_mm[:3, 3:]
    grey = tissue(points.reshape(3, *size)).round().astype(np.uint8)
    stylus = np.eye(4)
    stylus[:3, 3] = (5 * np.sin(time_s), 20.0, 10.0)
    tracker = _REFERENCE_TO_TRACKER
    return TrackedPicture(
        grey,
        {
            "ProbeToTracker": tracker @ to_reference,
            "ReferenceToTracker": tracker.copy(),
            "StylusToTracker": tracker @ stylus,
        },
    )
