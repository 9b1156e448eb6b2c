# SPDX-License-Identifier: Apache-2.0
"""Per-frame reconstruction: a small FFT of the acquired lines, then one multiply-add per coil and pixel.

Every R-th line gives an image folded R times; `Unmixing` holds what unfolds, whitens, combines, centres and scales it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace, to_device
from appliance.frames import Array
from appliance.mri.combine_coils import root_sum_of_squares
from appliance.mri.fourier import transforms


@dataclass(frozen=True, eq=False)
class Unmixing:
    """Weights of one slice geometry.

    `weights` is complex64 (coil, fold, y / fold, x) in the order in which the small FFT leaves the pixels. `fold` is
    the acceleration, or 1 where it does not divide the number of lines (then the zero-filled lines are transformed).
    """

    weights: Array
    n_kx: int  # samples of a line, readout oversampling included

    @property
    def fold(self) -> int:
        return int(self.weights.shape[1])

    @property
    def n_y(self) -> int:
        return int(self.weights.shape[1] * self.weights.shape[2])


def fuse(
    unmixing_weights: NDArray[np.complex64], acceleration: int, n_kx: int, whitening: NDArray[np.complex128] | None
) -> Unmixing:
    """Return the `Unmixing` for raw data from weights (coil, y, x) for whitened, centred, orthonormal coil images.

    `n_kx` is the length of a raw line; x in the weights may be fewer pixels around the centre (oversampling removal).
    """
    n_coils, n_y, n_x = unmixing_weights.shape
    fold = acceleration if n_y % acceleration == 0 else 1
    raw = unmixing_weights
    if whitening is not None:
        raw = (whitening.T.astype(np.complex64) @ raw.reshape(n_coils, -1)).reshape(raw.shape)
    centre_x = np.exp(-2j * np.pi * (n_kx // 2) / n_kx * (np.arange(n_x) - n_x // 2)) / np.sqrt(n_y * n_kx)
    blocks = (raw * centre_x.astype(np.complex64)).reshape(n_coils, fold, n_y // fold, n_x)
    return Unmixing(np.roll(blocks, (-(n_y // 2), -(n_x // 2)), axis=(2, 3)), n_kx)


def beside(unmixing: Unmixing, array: Array) -> Unmixing:
    """Return the unmixing with its weights on the device that `array` is on."""
    if isinstance(array, np.ndarray) or not isinstance(unmixing.weights, np.ndarray):
        return unmixing
    return replace(unmixing, weights=to_device(unmixing.weights))


def unmix(unmixing: Unmixing, lines: Array, index: NDArray[np.int64]) -> Array:
    """Return the combined image, complex64 (y, x), centred, orthonormal; the input is not modified.

    `lines` is raw k-space, complex64 (coil, line, kx); `index` says where each line lies in the n_y lines of the
    encoded matrix, its centre at n_y // 2. All of one residue modulo `fold`; lines not given count as zero.
    Raises ValueError when the number of coils is not that of the weights.
    """
    if len(lines) != len(unmixing.weights):
        raise ValueError(f"{len(lines)} coils, but {len(unmixing.weights)} when calibrated; keep the coil selection")
    xp, fft = namespace(lines), transforms(lines)
    offset = int(index[0]) % unmixing.fold
    n_rows, n_x = unmixing.weights.shape[2:]
    grid = _on_grid(lines, (index - offset) // unmixing.fold, n_rows)
    if n_x == unmixing.n_kx:
        folded = fft.ifft2(grid, axes=(1, 2), norm="forward", workers=2)
    else:  # half the columns are not wanted: cut them before the second transform
        rows = fft.ifft(grid, axis=2, norm="forward")
        rows = xp.concatenate((rows[..., : n_x - n_x // 2], rows[..., unmixing.n_kx - n_x // 2 :]), axis=2)
        folded = fft.ifft(rows, axis=1, norm="forward")
    image = unmixing.weights[0] * folded[0]
    product = xp.empty_like(image)
    for weights, coil_image in zip(unmixing.weights[1:], folded[1:], strict=True):  # three times as fast as einsum
        image += xp.multiply(weights, coil_image, out=product)
    return _centred(xp, image) * xp.asarray(_line_shift(offset, unmixing.n_y))[:, None]


def _centred(xp: ModuleType, blocks: Array) -> Array:
    """Return (fold, y / fold, x), in the order of the FFT, as centred (y, x)."""
    fold, n_rows, n_x = blocks.shape
    shift = (fold * n_rows // 2, n_x // 2)
    return xp.roll(blocks, shift, axis=(1, 2)).reshape(fold * n_rows, n_x)


def _on_grid(lines: Array, rows: NDArray[np.int64], n_rows: int) -> Array:
    """Put each line into its row of (coil, n_rows, kx); zeros elsewhere."""
    if len(rows) == n_rows and np.array_equal(rows, np.arange(n_rows)):
        return lines
    grid = namespace(lines).zeros((lines.shape[0], n_rows, lines.shape[2]), lines.dtype)
    grid[:, rows] = lines
    return grid


def _line_shift(offset: int, n_y: int) -> NDArray[np.complex64]:
    """Phase along y that the first line's distance from the centre of k-space gives, (y,)."""
    return np.asarray(np.exp(2j * np.pi * (offset - n_y // 2) / n_y * (np.arange(n_y) - n_y // 2)), np.complex64)


def noise_std(unmixing: Unmixing, covariance: NDArray[np.complex128], n_lines: int) -> NDArray[np.float32]:
    """Return the standard deviation of the noise of `unmix`'s image: float32 (y, x), of its real part.

    Near that of the magnitude where there is signal. `covariance` is E[n nᴴ] of the raw samples, `n_lines` how many
    lines are transformed. Weights are on the host. Divided by the same at R = 1 it is the g-factor times √R.
    """
    lower = np.linalg.cholesky(covariance).astype(np.complex64)
    mixed = np.einsum("sbmx,st->tbmx", unmixing.weights, lower, optimize=True)
    std = root_sum_of_squares(mixed) * np.float32(np.sqrt(n_lines * unmixing.n_kx / 2))
    return np.asarray(_centred(np, std))
