# SPDX-License-Identifier: Apache-2.0
"""GRAPPA kernels for regular 2D Cartesian undersampling, and their form in the image domain.

References: Griswold et al., MRM 2002;47:1202, DOI 10.1002/mrm.10171; in the image domain: Breuer et al.,
MRM 2009;62:739, DOI 10.1002/mrm.22066 (with the g-factor that follows from it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Kernel:
    """`weights[r - 1, t, s, b, d]`: what line `first + b * R`, column `d - n_d // 2` of coil `s` adds to the sample
    `r` lines after an acquired one, of coil `t`. `first` = -(n_b // 2 - 1) * R, relative to that acquired line.
    """

    weights: NDArray[np.complex64]  # (R - 1, coil, coil, n_b, n_d)
    acceleration: int

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Target line minus source line, (R - 1, n_b)."""
        n_b = self.weights.shape[3]
        sources = (np.arange(n_b) - (n_b // 2 - 1)) * self.acceleration
        return np.asarray(np.arange(1, self.acceleration)[:, None] - sources)


def calibration_lines_needed(acceleration: int, n_lines: int) -> int:
    """Consecutive lines that one kernel of `n_lines` acquired lines spans."""
    return acceleration * (n_lines - 1) + 1


def calibrate(
    calibration: NDArray[np.complex64],
    acceleration: int,
    kernel: tuple[int, int] = (2, 5),
    regularisation: float = 1e-4,
) -> Kernel:
    """Fit the kernel to `calibration`, (coil, ky, kx), consecutive lines, by regularised least squares.

    `kernel` is (acquired lines, even; columns, odd). `regularisation` (Tikhonov) is relative to the mean
    eigenvalue of the normal equations, so it has no unit. The input is not modified.
    Raises ValueError when there are too few lines for one position of the kernel.
    """
    n_b, n_d = kernel
    n_coils, n_lines, n_kx = calibration.shape
    span = calibration_lines_needed(acceleration, n_b)
    if n_lines < span or n_kx < n_d:
        raise ValueError(f"calibrate: {n_lines} lines × {n_kx} columns cannot hold a kernel of {span} × {n_d}")
    windows = np.lib.stride_tricks.sliding_window_view(calibration, (span, n_d), axis=(1, 2))
    sources = windows[..., ::acceleration, :].transpose(1, 2, 0, 3, 4).reshape(-1, n_coils * n_b * n_d)
    first_target = (n_b // 2 - 1) * acceleration + 1
    targets = windows[..., first_target : first_target + acceleration - 1, n_d // 2]
    targets = targets.transpose(1, 2, 3, 0).reshape(len(sources), -1)
    solution = _least_squares(sources, targets, regularisation)
    weights = solution.T.reshape(acceleration - 1, n_coils, n_coils, n_b, n_d)
    return Kernel(weights.astype(np.complex64), acceleration)


def _least_squares(
    sources: NDArray[np.complex64], targets: NDArray[np.complex64], regularisation: float
) -> NDArray[np.complex128]:
    """Minimise |sources · w - targets|² + λ|w|²; products in single, the factorisation in double precision."""
    adjoint = sources.conj().T
    normal = (adjoint @ sources).astype(np.complex128)
    size = len(normal)
    normal[np.diag_indices(size)] += max(regularisation * np.trace(normal).real / size, np.finfo(np.float64).tiny)
    factor = scipy.linalg.cho_factor(normal, overwrite_a=True, check_finite=False)
    return np.asarray(scipy.linalg.cho_solve(factor, adjoint @ targets, check_finite=False))


def unmixing_weights(kernel: Kernel, sensitivities: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return U, complex64 (coil, y, x): the combined image is Σ over coils of U · (image of the zero-filled lines).

    That product is the kernel's convolution in k-space (periodic at its edges) followed by the combination with
    conj(`sensitivities`), (coil, y, x), as `combine_coils` does it.
    """
    n_coils, n_y, n_x = sensitivities.shape
    n_classes, _, _, n_b, n_d = kernel.weights.shape
    combine = sensitivities.conj()
    along_x = _waves(n_d // 2 - np.arange(n_d), n_x)  # (d, x)
    along_y = _waves(kernel.offsets.reshape(-1), n_y).T  # (y, class and b)
    hybrid = np.einsum("rtsbd,dx->xtrbs", kernel.weights, along_x, optimize=True)
    unmixing = combine.copy()
    for x in range(n_x):
        mixed = combine[:, :, x].T @ hybrid[x].reshape(n_coils, -1)
        mixed = mixed.reshape(n_y, n_classes * n_b, n_coils)
        unmixing[:, :, x] += (along_y[:, :, None] * mixed).sum(axis=1).T
    return unmixing


def _waves(offsets: NDArray[np.int64], n: int) -> NDArray[np.complex64]:
    """exp(2πi · offset · (pixel - n // 2) / n), (offset, pixel): what a shift in k-space is in the image."""
    return np.asarray(np.exp(2j * np.pi / n * np.outer(offsets, np.arange(n) - n // 2)), np.complex64)
