# SPDX-License-Identifier: Apache-2.0
"""A moving cine phantom in k-space: a beating, breathing chest in a ring of coils.

Rule: shares no code with the reconstruction, so that it can be its oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

NOISE_STD = 0.02  # of real and of imaginary part, per k-space sample; tissue of 0.4 … 0.8 then has an SNR of 20 … 40
BEAT_FRAMES = 24  # one heart beat
BREATH_FRAMES = 150  # one breath


@dataclass(frozen=True)
class Ellipse:
    """Centre and half axes in units of half a field of view, y downwards; `intensity` covers what is below."""

    x: float
    y: float
    half_x: float
    half_y: float
    intensity: float


_STATIC = (
    Ellipse(0.0, 0.0, 0.78, 0.62, 0.80),  # fat
    Ellipse(0.0, 0.0, 0.72, 0.56, 0.45),  # muscle
    Ellipse(-0.34, -0.06, 0.26, 0.38, 0.10),  # lung
    Ellipse(0.38, -0.06, 0.24, 0.38, 0.10),  # lung
    Ellipse(0.0, 0.40, 0.11, 0.10, 0.70),  # vertebra
    Ellipse(0.0, 0.40, 0.045, 0.045, 0.95),  # spinal canal
    Ellipse(-0.02, 0.23, 0.05, 0.05, 0.85),  # aorta
    Ellipse(0.14, 0.34, 0.02, 0.02, 0.75),  # vessel
    Ellipse(-0.45, 0.05, 0.02, 0.02, 0.45),  # vessel
    Ellipse(-0.30, -0.20, 0.015, 0.015, 0.45),  # vessel
)


def _heart(frame_index: int) -> tuple[Ellipse, ...]:
    """Wall and blood pool of the left ventricle, and the right ventricle, at this frame."""
    squeeze = 0.5 - 0.5 * math.cos(2 * math.pi * frame_index / BEAT_FRAMES)  # 0 in diastole, 1 in systole
    shift = 0.03 * math.sin(2 * math.pi * frame_index / BREATH_FRAMES)
    x, y, pool = 0.12 + 0.2 * shift, -0.12 + shift, 0.135 - 0.045 * squeeze
    return (
        Ellipse(x, y, 0.20 - 0.015 * squeeze, 0.22 - 0.015 * squeeze, 0.60),
        Ellipse(x, y, pool, 1.15 * pool, 0.95),
        Ellipse(x - 0.25 + 0.02 * squeeze, y - 0.04, 0.10 - 0.03 * squeeze, 0.15 - 0.03 * squeeze, 1.00),
    )


def _grid(matrix: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel centres (y, 1) and (1, x) in units of half a field of view; index n // 2 is at 0."""
    y, x = ((np.arange(n, dtype=np.float32) - n // 2) * (2 / n) for n in matrix)
    return y[:, None], x[None, :]


def _paint(image: NDArray[np.float32], ellipses: tuple[Ellipse, ...]) -> NDArray[np.float32]:
    """Return `image` (y, x) with the ellipses over it; edges are two pixels wide, so that they hardly ring."""
    y, x = _grid((image.shape[0], image.shape[1]))
    for e in ellipses:
        radius = np.sqrt(((x - e.x) / e.half_x) ** 2 + ((y - e.y) / e.half_y) ** 2)
        pixels_inside = (1 - radius) * (min(e.half_x, e.half_y) * min(image.shape) / 2)
        image = image + np.clip(0.5 + 0.5 * pixels_inside, 0, 1) * (np.float32(e.intensity) - image)
    return image


@lru_cache(maxsize=8)
def _static_image(matrix: tuple[int, int]) -> NDArray[np.float32]:
    image = _paint(np.zeros(matrix, np.float32), _STATIC)
    image.flags.writeable = False
    return image


@lru_cache(maxsize=8)
def coil_sensitivities(matrix: tuple[int, int] = (256, 256), n_coils: int = 8) -> NDArray[np.complex64]:
    """Return smooth sensitivities of a ring of coils: complex64, (coil, y, x), read-only.

    Their root sum of squares is 1 everywhere, so that `cine_image` is what an ideal combination gives.
    """
    y, x = _grid(matrix)
    maps = np.empty((n_coils, *matrix), np.complex64)
    for coil in range(n_coils):
        angle = 2 * np.pi * (coil + 0.25) / n_coils
        dx, dy = x - 1.05 * np.cos(angle), y - 0.95 * np.sin(angle)
        phase = angle + 0.9 * np.cos(angle) * y - 0.9 * np.sin(angle) * x
        maps[coil] = np.exp(1j * phase) / (0.18 + dx**2 + dy**2)
    maps /= np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    maps.flags.writeable = False
    return maps


@lru_cache(maxsize=8)
def _modulation(matrix: tuple[int, int], n_coils: int) -> NDArray[np.complex64]:
    """Sensitivities times the object's own smooth phase (field inhomogeneity), (coil, y, x)."""
    y, x = _grid(matrix)
    phase = np.exp(1j * (0.5 * x - 0.7 * y + 0.6 * x * y + 0.4 * y**2)).astype(np.complex64)
    modulation = np.asarray(coil_sensitivities(matrix, n_coils) * phase)
    modulation.flags.writeable = False
    return modulation


def cine_image(frame_index: int, matrix: tuple[int, int] = (256, 256)) -> NDArray[np.float32]:
    """Return the truth of one frame: float32 magnitude, (y, x), 0 (air) … 1 (blood).

    `matrix` is (y, x).
    """
    return _paint(_static_image(matrix), _heart(frame_index))


def cine_kspace(
    frame_index: int,
    matrix: tuple[int, int] = (256, 256),
    n_coils: int = 8,
    noise_std: float = NOISE_STD,
    seed: int = 0,
) -> NDArray[np.complex64]:
    """Return one fully sampled frame: complex64, (coil, ky, kx), orthonormal, centre at n // 2.

    `matrix` is (ky, kx). `noise_std` is that of the real and of the imaginary part of each sample, and of the
    real part of an ideal combination's pixels. The same arguments give the same samples.
    """
    coil_images = cine_image(frame_index, matrix) * _modulation(matrix, n_coils)
    shifted = scipy.fft.ifftshift(coil_images, axes=(1, 2))
    kspace = scipy.fft.fftshift(scipy.fft.fft2(shifted, norm="ortho", overwrite_x=True), axes=(1, 2))
    return np.asarray(kspace + noise_samples(kspace.shape, noise_std, seed=(seed, frame_index)))


def noise_samples(
    shape: tuple[int, ...], noise_std: float = NOISE_STD, seed: int | tuple[int, ...] = 0
) -> NDArray[np.complex64]:
    """Return complex white noise, e.g. a scanner's noise acquisition of shape (coil, sample)."""
    generator = np.random.default_rng(seed)
    noise = noise_std * generator.standard_normal((*shape, 2), dtype=np.float32)
    return np.asarray(noise.view(np.complex64)[..., 0])
