# SPDX-License-Identifier: Apache-2.0
"""Dead-leaves images: occluding shapes whose edge and contrast statistics resemble those of anatomy.

References: Lee, Mumford, Huang 2001, doi:10.1023/A:1011109015675 (the model); Achddou, Gousseau, Ladjal 2021,
doi:10.1007/978-3-030-75549-2_27 (training denoisers on it).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from training.sample_kspace import sample_kspace

Image = NDArray[np.float32]

_OVERSAMPLING = 2  # drawn finer than it is sampled
_SMALLEST_RADII_PX = (1.5, 3.0, 6.0, 12.0)  # the four scales, in pixels of the result


def _radius(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """Draw from the density r^-3, which makes the images scale-invariant."""
    u = rng.uniform()
    return float((smallest**-2 * (1 - u) + largest**-2 * u) ** -0.5)


def _leaf(rng: np.random.Generator, y: Image, x: Image, radius: float) -> tuple[NDArray[np.bool_], Image]:
    """Return (inside, grey value) of one ellipse centred at the origin of the grids."""
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.4, 1.0)
    u = x * np.cos(angle) + y * np.sin(angle)
    v = (y * np.cos(angle) - x * np.sin(angle)) / aspect
    value = rng.uniform() + rng.normal(0, 0.1) * u / radius
    if rng.uniform() < 0.25:
        value = value + rng.uniform(0.02, 0.15) * np.sin(u * rng.uniform(0.1, 1.0) + rng.uniform(0, 6.3))
    return u * u + v * v <= radius * radius, np.broadcast_to(np.float32(value), u.shape)


def _span(centre: float, radius: float, size: int) -> slice:
    return slice(max(0, int(centre - radius)), min(size, int(centre + radius) + 2))


def _cover(rng: np.random.Generator, size: int, smallest: float) -> Image:
    """Paint leaves from front to back until nothing is left to see through."""
    image = np.zeros((size, size), np.float32)
    free = np.ones((size, size), bool)
    for _ in range(20_000):
        radius = _radius(rng, smallest, size / 3)
        cy, cx = rng.uniform(0, size, 2)
        box = np.s_[_span(cy, radius, size), _span(cx, radius, size)]
        if not free[box].any():
            continue
        y, x = np.ogrid[box]
        inside, value = _leaf(rng, (y - cy).astype(np.float32), (x - cx).astype(np.float32), radius)
        inside = inside & free[box]
        image[box][inside] = value[inside]
        free[box][inside] = False
        if free.mean() < 0.002:
            break
    return image.clip(0, None)


def _smooth(rng: np.random.Generator, size: int) -> Image:
    """Return a random field of about one hump, -1…1: receive profiles vary like that."""
    y, x = np.ogrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    field = sum(np.cos(np.pi * (ky * y + kx * x) + rng.uniform(0, 6.3)) for ky, kx in rng.uniform(-1.5, 1.5, (4, 2)))
    return np.asarray(field / 4, np.float32)


def _body(rng: np.random.Generator, size: int) -> Image:
    """Return 1 inside a wavy outline and 0 (air) outside."""
    y, x = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    cy, cx = rng.uniform(-0.6, 0.6, 2)
    angle = np.arctan2(y - cy, x - cx)
    outline = rng.uniform(0.5, 1.1) + sum(
        rng.normal(0, 0.1 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(1, 6)
    )
    return np.asarray(np.hypot(y - cy, x - cx) < outline, np.float32)


def _field(rng: np.random.Generator, size: int, width: float) -> Image:
    """Return a Gaussian random field of correlation length `width` pixels, standard deviation 1."""
    step = max(1, int(width / 4))  # drawn coarsely: it is smooth
    coarse = gaussian_filter(rng.standard_normal((size // step + 8, size // step + 8)), width / step)
    fine = map_coordinates(coarse, np.mgrid[0:size, 0:size] / step + 3, order=1)
    return np.asarray(fine / fine.std(), np.float32)


def _warp(rng: np.random.Generator, image: Image) -> Image:
    """Bend the outlines: nothing in a body is an ellipse."""
    size = len(image)
    width = size * rng.uniform(0.02, 0.15)
    reach = width * rng.uniform(0.2, 0.9)  # of the order of the field's width, so that nothing tears for long
    shift = [_field(rng, size, width) * reach for _ in range(2)]
    return np.asarray(map_coordinates(image, np.mgrid[0:size, 0:size] + shift, order=1, mode="nearest"), np.float32)


def _folds(rng: np.random.Generator, size: int) -> Image:
    """Return winding bands, -1…1, as of gyri and trabeculae: level sets of a random field."""
    width = _OVERSAMPLING * rng.uniform(2, 8)
    fine = _field(rng, size, width) - 0.7 * _field(rng, size, 2.5 * width)
    return np.tanh(rng.uniform(1, 5) * (np.abs(fine) - rng.uniform(0.1, 0.9)))


def _texture(rng: np.random.Generator, size: int, least: float, most: float) -> Image:
    """Return a field whose power falls with frequency to the power of twice `least` to `most`, standard deviation 1."""
    spectrum = np.fft.rfft2(rng.standard_normal((size, size)).astype(np.float32))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)) + 1 / size
    field = np.fft.irfft2(spectrum * frequency ** -rng.uniform(least, most), (size, size))
    return np.asarray(field / field.std(), np.float32)


def average(rng: np.random.Generator, fine: Image, size: int, most_blur_px: float) -> Image:
    """Return the means of the pixels of a finer grid, (size, size), blurred by up to so much."""
    step = len(fine) // size
    image = fine.reshape(size, step, size, step).mean(axis=(1, 3))
    return np.asarray(gaussian_filter(image, rng.uniform(0, most_blur_px)), np.float32)


def scanned_leaves(rng: np.random.Generator, size: int) -> Image:
    """Return dead leaves as an MR scanner sees them."""
    return dead_leaves(rng, size, scanned=True)


def dead_leaves(rng: np.random.Generator, size: int, scanned: bool = False) -> Image:
    """Return one noise-free image, float32 (y, x), (size, size), its brightest tissue near 1; half of them with air.

    `scanned`: sampled in k-space, and textured down to single pixels, as MR images are; else averaged and blurred.
    """
    fine = size * _OVERSAMPLING
    image = _cover(rng, fine, _OVERSAMPLING * rng.choice(_SMALLEST_RADII_PX))
    if rng.uniform() < 0.6:
        image = _warp(rng, image)
    where = _field(rng, fine, fine / 6) > rng.uniform(-1.5, 1.0)  # folds and texture are parts of an image
    if rng.uniform() < 0.5:
        image = image + where * rng.uniform(0.05, 0.5) * _folds(rng, fine)
    if rng.uniform() < 0.5:
        image = image + where * rng.uniform(0.01, 0.12) * _texture(rng, fine, *((0.3, 1.8) if scanned else (1.0, 2.0)))
    image = image.clip(0, None)
    contrast = rng.uniform(0.2, 1.0)  # tissues differ less than leaves
    image = (contrast * image + rng.uniform(0, 1 - contrast)) * (1 + 0.5 * _smooth(rng, fine))
    if rng.uniform() < 0.5:
        image *= _body(rng, fine)
    image = sample_kspace(rng, image, size) if scanned else average(rng, image, size, 1.2)
    return np.asarray(image / max(float(np.percentile(image, 99.5)), 1e-3), np.float32)
