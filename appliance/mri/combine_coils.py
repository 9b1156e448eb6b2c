# SPDX-License-Identifier: Apache-2.0
"""Sensitivities from calibration lines, and the combination of coil images that keeps their phase.

References: Walsh et al., MRM 2000;43:682, DOI 10.1002/(SICI)1522-2594(200005)43:5<682::AID-MRM10>3.0.CO;2-G
(adaptive combination); Roemer et al., MRM 1990;16:192, DOI 10.1002/mrm.1910160203 (its noise).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.mri.fourier import resize_centred, to_image

COARSE = 64  # pixels along an axis of the grid that maps are estimated on; they are smooth
BLOCK = 2  # coarse pixels on each side that share one covariance: 5 × 5, as in Walsh's paper
ITERATIONS = 2  # of the power method; it starts at the image itself, so one would nearly do


def root_sum_of_squares(coil_images: Array) -> Array:
    """Return the magnitude (y, x), float32, of coil images (coil, y, x)."""
    xp = namespace(coil_images)
    return xp.sqrt(xp.sum(coil_images.real**2 + coil_images.imag**2, axis=0))


def combine_coils(coil_images: Array, sensitivities: Array) -> Array:
    """Return Σ conj(S) · image, complex (y, x): with whitened data and |S| = 1 the best SNR, phase kept."""
    return (sensitivities.conj() * coil_images).sum(axis=0)


def estimate_sensitivities(calibration: NDArray[np.complex64], matrix: tuple[int, int]) -> NDArray[np.complex64]:
    """Return adaptive (Walsh) maps, complex64 (coil, y, x), with Σ|S|² = 1 in every pixel.

    `calibration` is (coil, ky, kx), consecutive lines around the centre of k-space and of the field of view that
    `matrix` (y, x) divides; whitened. The maps' phase is relative to one virtual coil (the strongest combination
    over the whole field of view), so the combined image has that coil's phase.
    """
    coarse = (min(COARSE, matrix[0]), min(COARSE, matrix[1]))
    images = _low_resolution(calibration, coarse)
    vectors = _normalised(images)
    for _ in range(ITERATIONS):
        vectors = _normalised(_local_covariance_times(images, vectors))
    seen = np.einsum("c,cyx->yx", _virtual_coil(images).conj(), vectors)[None]
    fine, seen = (_interpolated(_interpolated(part, matrix[0], 1), matrix[1], 2) for part in (vectors, seen))
    scale = seen[0].conj() / np.maximum(np.abs(seen[0]) * root_sum_of_squares(fine), np.finfo(np.float32).tiny)
    return np.asarray(fine * scale)


def _low_resolution(calibration: NDArray[np.complex64], coarse: tuple[int, int]) -> NDArray[np.complex64]:
    """Coil images on the coarse grid, of the same resolution along both axes, without ringing (Hann)."""
    n_lines = min(calibration.shape[1], coarse[0])
    block = resize_centred(resize_centred(calibration, n_lines, 1), min(n_lines, coarse[1], calibration.shape[2]), 2)
    window = [np.hanning(n + 2)[1:-1].astype(np.float32) for n in block.shape[1:]]
    block = block * window[0][:, None] * window[1]
    return np.asarray(to_image(resize_centred(resize_centred(block, coarse[0], 1), coarse[1], 2)))


def _local_covariance_times(images: NDArray[np.complex64], vectors: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """C(p) · v(p) with C(p) = Σ over the block around p of i iᴴ, without forming C."""
    out = np.zeros_like(vectors)
    for dy in range(-BLOCK, BLOCK + 1):
        for dx in range(-BLOCK, BLOCK + 1):
            neighbour = np.roll(images, (dy, dx), axis=(1, 2))
            out += neighbour * (neighbour.conj() * vectors).sum(axis=0)
    return out


def _virtual_coil(images: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Dominant eigenvector of the coils' covariance over the whole image, (coil,)."""
    flat = images.reshape(images.shape[0], -1)
    return np.asarray(np.linalg.eigh(flat @ flat.conj().T)[1][:, -1])


def _normalised(vectors: NDArray[np.complex64]) -> NDArray[np.complex64]:
    norm = root_sum_of_squares(vectors)
    return np.asarray(vectors / np.maximum(norm, np.finfo(np.float32).tiny))


def _interpolated(maps: NDArray[np.complex64], n: int, axis: int) -> NDArray[np.complex64]:
    """Periodic linear interpolation of one axis to `n` pixels; centres n // 2 lie on each other."""
    old = maps.shape[axis]
    position = (np.arange(n) - n // 2) * (old / n) + old // 2
    below = np.floor(position).astype(int)
    fraction = (position - below).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    lower, upper = maps.take(below % old, axis), maps.take((below + 1) % old, axis)
    return np.asarray(lower + fraction * (upper - lower))
