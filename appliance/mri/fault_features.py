# SPDX-License-Identifier: Apache-2.0
"""What the network for a second opinion sees of a frame: the image and k-space, both logarithmic and of one size."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from appliance.mri.rules import Floats, Kspace

SIZE_PX = 96
IMAGE_FLOOR = 0.01  # of the bright tissue; what is darker than that looks alike
KSPACE_FLOOR = 0.01  # of the median
FIT_SCALE = 2.0  # brings correlations, at most 1, to the size of the other channels
LARGEST = 5.0  # of any channel
N_CHANNELS = 5
CENTRE_LINES, CENTRE_COLUMNS, MOST_COILS = 64, 24, 6  # of k-space, for how lines follow from each other
MIN_CENTRE = 8

REGULARISATION = 1e-3  # of the mean eigenvalue


def fault_features(image: Floats, kspace: Kspace) -> NDArray[np.float32]:
    """Return (1, N_CHANNELS, SIZE_PX, SIZE_PX).

    Log image; the same half a field of view away along y, where its ghost would lie; half the log of the largest
    coil's k-space; and of the centre of k-space, how well each sample follows from the lines beside it: real and
    imaginary part of their correlation over coils (appliance/mri/consistency.py), with weights fitted to this frame.
    `image` is magnitude (y, x), averaged to the size; `kspace` (coil, ky, kx) holds the acquired lines, in their
    order, and the largest of the samples that share a pixel stays, so that a spike does. Neither is modified.
    """
    features = np.empty((1, N_CHANNELS, SIZE_PX, SIZE_PX), np.float32)
    small = _mean_of(image.shape[0]) @ image.astype(np.float32, copy=False) @ _mean_of(image.shape[1]).T
    bright = max(float(np.percentile(small[::2, ::2], 98)), 1e-30)
    np.log(small / bright + IMAGE_FLOOR, out=features[0, 0])
    features[0, 1] = np.roll(features[0, 0], SIZE_PX // 2, axis=0)
    peaks = np.abs(kspace[0])
    scratch = np.empty_like(peaks)
    for coil in kspace[1:]:
        np.maximum(peaks, np.abs(coil, out=scratch), out=peaks)
    centre = kspace[(slice(None), *_around_peak(peaks))]
    peaks = _largest(_largest(peaks, 0), 1)
    np.log(peaks / max(float(np.median(peaks[::2, ::2])), 1e-30) + KSPACE_FLOOR, out=features[0, 2])
    features[0, 2] *= 0.5
    fit = _correlation(centre)
    rows, columns = (np.arange(SIZE_PX) * n // SIZE_PX for n in fit.shape)
    fit = fit[np.ix_(rows, columns)]
    features[0, 3], features[0, 4] = FIT_SCALE * fit.real, FIT_SCALE * fit.imag
    np.clip(features, -LARGEST, LARGEST, out=features)
    return features


def _around_peak(peaks: NDArray[np.float32]) -> tuple[slice, slice]:
    """The lines and columns around the largest sample; fewer at an edge."""
    line, column = int(peaks.max(axis=1).argmax()), int(peaks.max(axis=0).argmax())
    half_lines, half_columns = CENTRE_LINES // 2, CENTRE_COLUMNS // 2
    return (
        slice(max(line - half_lines, 0), line + half_lines),
        slice(max(column - half_columns, 0), column + half_columns),
    )


def _correlation(centre: Kspace) -> Kspace:
    """Correlation over coils of each inner sample with what follows from the lines beside it, (line, column)."""
    if min(centre.shape[1:]) < MIN_CENTRE:
        return np.zeros((1, 1), np.complex64)
    strongest = np.argsort(np.abs(centre).sum(axis=(1, 2)))[-MOST_COILS:]
    centre = centre[np.sort(strongest)]
    expected = expected_lines(centre, fit_weights(centre))
    actual = centre[:, 1:-1, 1:-1]
    both = (expected.conj() * actual).sum(axis=0)
    power = (np.abs(expected) ** 2).sum(axis=0) * (np.abs(actual) ** 2).sum(axis=0)
    return np.asarray(both / np.sqrt(np.maximum(power, 1e-30)), np.complex64)


def _spans(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last sample of each of SIZE_PX pixels; where there are fewer samples, some stand for several pixels."""
    first = np.arange(SIZE_PX) * n // SIZE_PX
    return first, np.maximum(np.append(first[1:], n) - 1, first)


@lru_cache(maxsize=16)
def _mean_of(n: int) -> NDArray[np.float32]:
    """The matrix that averages `n` samples to SIZE_PX, which is faster than sums over spans."""
    first, last = _spans(n)
    sample = np.arange(n)
    inside = (sample >= first[:, None]) & (sample <= last[:, None])
    return np.asarray(inside / inside.sum(axis=1, keepdims=True), np.float32)


def _largest(array: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Largest sample of each pixel along `axis`."""
    first, last = _spans(array.shape[axis])
    out: NDArray[np.float32] = array.take(first, axis)
    for step in range(1, int((last - first).max()) + 1):
        np.maximum(out, array.take(np.minimum(first + step, last), axis), out=out)
    return out


def fit_weights(centre: Kspace) -> NDArray[np.complex64]:
    """Return weights, (2 * 3 * coil, coil), from `centre` (coil, line, column) of the usual frame."""
    sources, targets = _neighbours(centre), _inner(centre)
    normal = sources.conj().T @ sources
    normal[np.diag_indices(len(normal))] += REGULARISATION * np.trace(normal).real / len(normal) + 1e-30
    return np.asarray(np.linalg.solve(normal, sources.conj().T @ targets), np.complex64)


def _inner(centre: Kspace) -> Kspace:
    return centre[:, 1:-1, 1:-1].reshape(len(centre), -1).T


def _neighbours(centre: Kspace) -> Kspace:
    """Three samples on the line before and on the line after, of every coil: (sample, 2 * 3 * coil)."""
    n_lines, n_columns = centre.shape[1] - 2, centre.shape[2] - 2
    shifted = [centre[:, i : i + n_lines, j : j + n_columns] for i in (0, 2) for j in (0, 1, 2)]
    return np.concatenate(shifted).reshape(6 * len(centre), -1).T


def expected_lines(centre: Kspace, weights: NDArray[np.complex64]) -> Kspace:
    """Return what the inner samples of `centre` should be by their neighbours, (coil, line - 2, column - 2)."""
    n_coils, n_lines, n_columns = centre.shape
    return np.asarray((_neighbours(centre) @ weights).T.reshape(n_coils, n_lines - 2, n_columns - 2))
