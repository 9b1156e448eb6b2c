# SPDX-License-Identifier: Apache-2.0
"""Rings about the axis of rotation: what a detector channel leaves behind that is not calibrated.

Reference: Sijbers, Postnov 2004, doi:10.1088/0031-9155/49/14/N06 (rings are straight lines in polar coordinates).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter, uniform_filter

Image = NDArray[np.float32]
Bools = NDArray[np.bool_]

N_ANGLES = 768
SMALLEST_RADIUS_PX = 8  # nearer to the axis a ring is a blot
RADIAL_PX = 9  # what is wider than half of that is anatomy
AROUND = 15  # radii and angles over which the usual difference is taken
LEAST_USUAL = 0.7  # of the image's: where it is smooth, noise is no ring
MOST_USUAL = 20.0  # times the image's: edges of bone and metal count no more than that
HALF_A_UNIT = 0.5  # HU: images are rounded to whole ones
LOWEST_HU = -1020.0  # below it a machine has cut off, or padded


@dataclass(frozen=True)
class Ring:
    """The strongest ring of an image."""

    radius_px: float = 0.0
    height_hu: float = 0.0  # over what is inside and outside of it, the middle value of its turn
    agreement: float = 0.0  # 1: all of the turn stands out with the same sign; 0: as often with the other one


@cache
def _polar_grid(shape: tuple[int, int]) -> NDArray[np.intp]:
    """Return the indices of the pixels on (radius, angle) about the centre of an image."""
    angles = (np.arange(N_ANGLES) + 0.5) * 2 * np.pi / N_ANGLES
    radii = np.arange(SMALLEST_RADIUS_PX, max(min(shape) // 2 - 1, SMALLEST_RADIUS_PX + 1))[:, None]
    y = (shape[0] - 1) / 2 + radii * np.sin(angles)
    x = (shape[1] - 1) / 2 + radii * np.cos(angles)
    rows, columns = (np.clip(np.rint(a).astype(np.intp), 0, n - 1) for a, n in ((y, shape[0]), (x, shape[1])))
    return np.asarray(rows * shape[1] + columns)


def strongest_ring(image: Image) -> Ring:
    """Return the strongest ring about the centre of `image` (y, x) in HU, finite.

    Each point is compared with those inside and outside of it, in units of the usual difference around it and limited
    to 1, so that an edge that follows the ring for a while counts no more than the noise elsewhere.
    """
    polar: Image = image.ravel()[_polar_grid((image.shape[0], image.shape[1]))]
    measured = polar > LOWEST_HU
    n_measured = np.count_nonzero(measured, axis=1)
    enough = n_measured >= N_ANGLES // 2
    if np.count_nonzero(enough) < 2 * RADIAL_PX:
        return Ring()
    difference: Image = polar - median_filter(polar, (RADIAL_PX, 1), mode="nearest")
    signs = np.clip(difference / _usual(difference, measured), -1, 1) * measured
    mean = np.where(enough, signs.sum(axis=1) / np.maximum(n_measured, 1), 0)
    agreement = np.where(enough, mean - median_filter(mean, RADIAL_PX), 0)
    radius = int(np.abs(agreement).argmax())
    height = float(np.median(difference[radius][measured[radius]])) if enough[radius] else 0.0
    return Ring(float(radius + SMALLEST_RADIUS_PX), height, abs(float(agreement[radius])))


def _usual(difference: Image, measured: Bools) -> Image:
    """Return the root mean square of `difference` (radius, angle) around each point, within limits."""
    some = np.abs(difference[measured])
    usual = max(1.4826 * float(np.median(some)), HALF_A_UNIT)
    around = uniform_filter(np.minimum(np.square(difference), (MOST_USUAL * usual) ** 2), AROUND, mode="nearest")
    return np.asarray(np.maximum(np.sqrt(np.maximum(around, 0)), max(LEAST_USUAL * usual, HALF_A_UNIT)), np.float32)
