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

MIN_REGULARISATION = 1e-6  # the products' rounding; with less, dependent coils have no factorisation


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
    kernel: tuple[int, int] = (4, 5),
    regularisation: float = 1e-3,
) -> Kernel:
    """Fit the kernel to `calibration`, (coil, ky, kx), consecutive lines, by regularised least squares.

    `kernel` is (acquired lines, even; columns, odd). `regularisation` (Tikhonov) is relative to the mean
    eigenvalue of the normal equations, so it has no unit. Beyond the first and last column k-space counts as zero;
    with that the normal equations depend on differences of columns only, and need a fifth of the products.
    The input is not modified. Raises ValueError when there are too few lines for one position of the kernel.
    """
    n_b, n_d = kernel
    n_coils, n_lines, n_kx = calibration.shape
    span = calibration_lines_needed(acceleration, n_b)
    if n_lines < span or n_kx < n_d:
        raise ValueError(f"calibrate: {n_lines} lines × {n_kx} columns cannot hold a kernel of {span} × {n_d}")
    padded = np.pad(calibration.transpose(1, 2, 0), ((0, 0), (n_d // 2, n_d // 2), (0, 0)))  # (ky, kx, coil)
    n_positions = n_lines - span + 1
    rows = [padded[b * acceleration : b * acceleration + n_positions] for b in range(n_b)]
    first = (n_b // 2 - 1) * acceleration + 1
    targets = [padded[first + r : first + r + n_positions] for r in range(acceleration - 1)]
    solution = _solve(np.concatenate(rows, axis=2), np.concatenate(targets, axis=2), n_d, regularisation)
    weights = solution.reshape(n_d, n_b, n_coils, acceleration - 1, n_coils).transpose(3, 4, 2, 1, 0)
    return Kernel(weights.astype(np.complex64), acceleration)


def _solve(
    sources: NDArray[np.complex64], targets: NDArray[np.complex64], n_d: int, regularisation: float
) -> NDArray[np.complex128]:
    """Minimise |Σ_d sources(kx + d) · w_d - targets|² + λ|w|²; return w, (d and source, target).

    Both are (position, kx, …) with n_d - 1 zero columns, which keep the positions apart when they are joined to one
    long row. Products are in single, the factorisation is in double precision.
    """
    n_s = sources.shape[2]
    s, t = sources.reshape(-1, n_s), targets.reshape(-1, targets.shape[2])
    adjoint = np.ascontiguousarray(s.conj().T)
    lagged = [adjoint[:, : len(s) - lag] @ s[lag:] for lag in range(n_d)]
    normal = np.empty((n_d, n_s, n_d, n_s), np.complex128)
    right = np.empty((n_d, n_s, t.shape[1]), np.complex128)
    for d in range(n_d):
        for e in range(n_d):
            normal[d, :, e] = lagged[e - d] if e >= d else lagged[d - e].conj().T
        shift = d - n_d // 2
        right[d] = adjoint[:, max(shift, 0) : len(s) + min(shift, 0)] @ t[max(-shift, 0) : len(t) - max(shift, 0)]
    matrix = normal.reshape(n_d * n_s, n_d * n_s)
    mean_eigenvalue = np.trace(matrix).real / len(matrix)
    matrix[np.diag_indices(len(matrix))] += max(regularisation, MIN_REGULARISATION) * mean_eigenvalue
    factor = scipy.linalg.cho_factor(matrix, overwrite_a=True, check_finite=False)
    return np.asarray(scipy.linalg.cho_solve(factor, right.reshape(n_d * n_s, -1), check_finite=False))


def unmixing_weights(kernel: Kernel, sensitivities: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return U, complex64 (coil, y, x): the combined image is Σ over coils of U · (image of the zero-filled lines).

    That product is the kernel's convolution in k-space (periodic at its edges) followed by the combination with
    conj(`sensitivities`), (coil, y, x), as `combine_coils` does it.
    """
    n_coils, n_y, n_x = sensitivities.shape
    n_d = kernel.weights.shape[4]
    along_x = _waves(n_d // 2 - np.arange(n_d), n_x)  # (d, x)
    along_y = _waves(kernel.offsets.reshape(-1), n_y).T[:, :, None]  # (y, class and b, 1)
    taps = kernel.weights.transpose(4, 0, 3, 1, 2).reshape(n_d, -1)  # (d, class, b, target and source)
    hybrid = (along_x.T @ taps).reshape(n_x, -1, n_coils)
    combine = np.ascontiguousarray(sensitivities.reshape(n_coils, -1).T.conj()).reshape(n_y, n_x, n_coils)
    unmixing = combine.copy()
    for x in range(n_x):
        unmixing[:, x] += (along_y * combine[:, None, x]).reshape(n_y, -1) @ hybrid[x]
    return np.ascontiguousarray(unmixing.reshape(-1, n_coils).T).reshape(sensitivities.shape)


def _waves(offsets: NDArray[np.int64], n: int) -> NDArray[np.complex64]:
    """exp(2πi · offset · (pixel - n // 2) / n), (offset, pixel): what a shift in k-space is in the image."""
    return np.asarray(np.exp(2j * np.pi / n * np.outer(offsets, np.arange(n) - n // 2)), np.complex64)
