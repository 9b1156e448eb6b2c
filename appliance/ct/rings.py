# SPDX-License-Identifier: Apache-2.0
"""Rings about the axis of rotation: what a detector channel leaves behind that is not calibrated.

Reference: Sijbers, Postnov 2004, doi:10.1088/0031-9155/49/14/N06 (rings are straight lines in polar coordinates).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

Image = NDArray[np.float32]

N_SECTORS = 16
SEEN_IN = 0.75  # of the sectors that were measured, a ring stands out with the same sign
SMALLEST_RADIUS_PX = 8  # nearer to the axis a ring is a blot
RADIAL_PX = 9  # what is wider than half of that is anatomy
HALF_A_UNIT = 0.5  # HU: images are rounded to whole ones
LOWEST_HU = -1020.0  # below it a machine has cut off, or padded


@dataclass(frozen=True)
class Ring:
    """The strongest ring of an image."""

    radius_px: float = 0.0
    height_hu: float = 0.0  # of the sector that shows it least, of SEEN_IN of them
    over_chance: float = 0.0  # that height, in standard deviations of what all radii show, or in HALF_A_UNIT


@cache
def _polar_grid(shape: tuple[int, int]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the pixels on (radius, angle) about the centre of an image."""
    n_radii = min(shape) // 2 - 1
    angles = (np.arange(N_SECTORS * 24) + 0.5) * 2 * np.pi / (N_SECTORS * 24)
    radii = np.arange(SMALLEST_RADIUS_PX, max(n_radii, SMALLEST_RADIUS_PX + 1))[:, None]
    y = (shape[0] - 1) / 2 + radii * np.sin(angles)
    x = (shape[1] - 1) / 2 + radii * np.cos(angles)
    rows, columns = (np.clip(np.rint(a).astype(np.intp), 0, n - 1) for a, n in ((y, shape[0]), (x, shape[1])))
    return rows, columns


def strongest_ring(image: Image) -> Ring:
    """Return the strongest ring about the centre of `image` (y, x) in HU, finite."""
    rows, columns = _polar_grid((image.shape[0], image.shape[1]))
    polar = image[rows, columns].reshape(len(rows), N_SECTORS, -1)
    measured = np.mean(polar > LOWEST_HU, axis=2) > 0.5
    lines = np.median(polar, axis=2)  # (radius, sector)
    lines = lines - median_filter(lines, (RADIAL_PX, 1), mode="nearest")
    n_measured = measured.sum(axis=1)
    enough = n_measured >= N_SECTORS // 2
    if np.count_nonzero(enough) < 2 * RADIAL_PX:
        return Ring()
    bright, dark = (_agreed(sign * lines, measured, n_measured) for sign in (1, -1))
    height = np.where(enough, np.maximum(bright, dark), 0)
    noise = 1.4826 * float(np.median(np.abs(lines[measured]))) / N_SECTORS**0.5
    radius = int(height.argmax())
    sign = 1 if bright[radius] >= dark[radius] else -1
    over = float(height[radius]) / max(noise, HALF_A_UNIT)
    return Ring(float(radius + SMALLEST_RADIUS_PX), sign * float(height[radius]), over)


def _agreed(
    lines: NDArray[np.floating], measured: NDArray[np.bool_], n_measured: NDArray[np.intp]
) -> NDArray[np.floating]:
    """Return for each radius the height that SEEN_IN of its measured sectors reach, not below 0."""
    ranked = np.sort(np.where(measured, lines, -np.inf), axis=1)[:, ::-1]
    needed = np.maximum(np.ceil(SEEN_IN * n_measured).astype(np.intp), 1) - 1
    found = np.take_along_axis(ranked, needed[:, None], axis=1)[:, 0]
    return np.where(np.isfinite(found), np.maximum(found, 0), 0)
