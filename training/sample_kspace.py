# SPDX-License-Identifier: Apache-2.0
"""Make an image as a scanner does: of a finer object it samples the middle of k-space, and filters it or not.

That gives edges the sharpness and the ringing of real images; averaging pixels gives neither.

Reference: Haacke et al. 1999, Magnetic Resonance Imaging, ISBN 978-0-471-35128-3, chapters 12 and 13.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Window = NDArray[np.float64]

_LEAST_SAMPLED = 0.6  # of an axis; what is missing is filled with zeros, as where images are interpolated


def sample_kspace(rng: np.random.Generator, fine: Image, size: int) -> Image:
    """Return the magnitude image, float32 (size, size), of an object given on a finer grid, (y, x)."""
    low = (len(fine) - size) // 2
    kspace = np.fft.fftshift(np.fft.fft2(fine))[low : low + size, low : low + size]
    image = np.fft.ifft2(np.fft.ifftshift(kspace * _window(rng, size)))
    return np.asarray(np.abs(image) * (size / len(fine)) ** 2, np.float32)


def _window(rng: np.random.Generator, size: int) -> Window:
    """Return what k-space is multiplied with: a rectangle or an ellipse, with sharp or with falling edges."""
    reach_y, reach_x = (1.0 if rng.uniform() < 0.5 else rng.uniform(_LEAST_SAMPLED, 1.0) for _ in range(2))
    k = np.abs(np.arange(size) - size // 2) / (size / 2)
    ky, kx = k[:, None] / reach_y, k / reach_x
    elliptical = rng.uniform() < 0.5
    starts = 1.0 if rng.uniform() < 0.5 else rng.uniform(0.0, 0.9)
    least = rng.uniform(0.0, 0.3)
    if elliptical:
        return _falling(np.hypot(ky, kx), starts, least)
    return _falling(ky, starts, least) * _falling(kx, starts, least)


def _falling(k: Window, starts: float, least: float) -> Window:
    """Return 1 up to `starts`, then the flank of a Hann window down to `least`, and 0 beyond 1."""
    part = np.clip((k - starts) / max(1 - starts, 1e-9), 0, 1)
    return np.where(k <= 1, least + (1 - least) * np.cos(np.pi / 2 * part) ** 2, 0)
