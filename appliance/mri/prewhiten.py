# SPDX-License-Identifier: Apache-2.0
"""Noise covariance of the coils, and the matrix that makes it the identity.

References: Pruessmann et al., MRM 2001;46:638, DOI 10.1002/mrm.1241 (appendix A).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import to_host
from appliance.frames import Array

MIN_SAMPLES_PER_COIL = 8  # fewer give a covariance that is worse than none


def noise_covariance(noise: NDArray[np.complex64]) -> NDArray[np.complex128]:
    """Return E[n nᴴ] of noise samples (coil, …): complex128, (coil, coil), in squared units of the samples.

    Raises ValueError on too few samples or on a coil without finite noise (it cannot be whitened).
    """
    samples = noise.reshape(noise.shape[0], -1).astype(np.complex128)
    n_coils, n_samples = samples.shape
    if n_samples < MIN_SAMPLES_PER_COIL * n_coils:
        raise ValueError(f"noise_covariance: {n_samples} samples are too few for {n_coils} coils; measure more noise")
    covariance: NDArray[np.complex128] = samples @ samples.conj().T / n_samples
    power = np.real(np.diag(covariance))
    dead = [int(coil) for coil in np.flatnonzero(~(np.isfinite(power) & (power > 1e-9 * np.nanmax(power))))]
    if dead:
        raise ValueError(f"noise_covariance: no usable noise in coils {dead}; check these receive channels")
    return covariance


def prewhitening_matrix(covariance: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Return P, (coil, coil), with P Ψ Pᴴ = 1: the inverse of the Cholesky factor of Ψ."""
    lower = np.linalg.cholesky(covariance)
    return np.asarray(np.linalg.inv(lower))


def prewhiten(kspace: Array, matrix: Array) -> Array:
    """Return P · data for k-space or images (coil, …); shape and dtype kept, input not modified."""
    flat = kspace.reshape(kspace.shape[0], -1)
    return (matrix.astype(kspace.dtype) @ flat).reshape(kspace.shape)


def noise_from_periphery(kspace: Array) -> NDArray[np.complex128]:
    """Return a diagonal covariance, (coil, coil), from the outer corners of k-space (coil, line, kx), centred.

    For scans without a noise measurement: the median there resists what little signal is left. Good for a level,
    not for whitening.
    """
    n_lines, n_kx = kspace.shape[1] // 8 + 1, kspace.shape[2] // 8 + 1
    rows, columns = np.r_[0:n_lines, -n_lines:0], np.r_[0:n_kx, -n_kx:0]
    corners = to_host(kspace[:, rows][:, :, columns])
    power = np.median(np.abs(corners.reshape(len(corners), -1)) ** 2, axis=1) / np.log(2)  # of an exponential law
    return np.diag(np.maximum(power, np.finfo(np.float32).tiny)).astype(np.complex128)
