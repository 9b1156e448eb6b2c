# SPDX-License-Identifier: Apache-2.0
"""Piecewise constant phantoms at random: nested ellipses and boxes of even tissue, as quality phantoms have them.

Dead leaves are shaded and textured all over; a network that saw nothing else leaves ripples in what is even.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from training.dead_leaves import Image, average
from training.sample_kspace import sample_kspace

_OVERSAMPLING = 2


def scanned_phantom(rng: np.random.Generator, size: int) -> Image:
    """Return a phantom as an MR scanner sees it, or in three of ten as it was painted."""
    return random_phantom(rng, size, scanned=True)


def random_phantom(rng: np.random.Generator, size: int, scanned: bool = False) -> Image:
    """Return one noise-free image, float32 (y, x), (size, size), its brightest tissue near 1; most of them with air."""
    fine = size * _OVERSAMPLING
    axis = np.linspace(-1, 1, fine, dtype=np.float32)
    image = np.full((fine, fine), 0 if rng.uniform() < 0.8 else rng.uniform(), np.float32)
    for number in range(rng.integers(4, 40)):
        reach = rng.uniform(0.5, 1.0) if number == 0 else float(np.exp(rng.uniform(np.log(0.008), np.log(0.6))))
        cy, cx = rng.uniform(-0.15, 0.15, 2) if number == 0 else rng.uniform(-0.8, 0.8, 2)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.3, 1.0)
        u = (axis - cx) * np.float32(np.cos(angle)) + (axis[:, None] - cy) * np.float32(np.sin(angle))
        v = (axis[:, None] - cy) * np.float32(np.cos(angle)) - (axis - cx) * np.float32(np.sin(angle))
        power = 2 if rng.uniform() < 0.8 else 8  # an ellipse, or nearly a box
        image[np.abs(u / reach) ** power + np.abs(v / (aspect * reach)) ** power < 1] = rng.uniform()
    if not scanned:
        image = average(rng, image, size, 1.0)
    elif rng.uniform() < 0.3:
        image = average(rng, image, size, 0.0)
    else:
        image = sample_kspace(rng, gaussian_filter(image, rng.uniform(0, 1.0)), size)
    return np.asarray(image / max(float(np.percentile(image, 99.5)), 0.05), np.float32)
