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
LARGEST = 5.0  # of either channel


def fault_features(image: Floats, kspace: Kspace) -> NDArray[np.float32]:
    """Return (1, 3, SIZE_PX, SIZE_PX): log image, the same half a field of view away along y, where its ghost would
    lie, and half the log of the largest coil's k-space.

    `image` is magnitude (y, x), averaged to the size; `kspace` (coil, ky, kx) holds the acquired lines, in their
    order, and the largest of the samples that share a pixel stays, so that a spike does. Neither is modified.
    """
    features = np.empty((1, 3, SIZE_PX, SIZE_PX), np.float32)
    small = _mean_of(image.shape[0]) @ image.astype(np.float32, copy=False) @ _mean_of(image.shape[1]).T
    bright = max(float(np.percentile(small[::2, ::2], 98)), 1e-30)
    np.log(small / bright + IMAGE_FLOOR, out=features[0, 0])
    features[0, 1] = np.roll(features[0, 0], SIZE_PX // 2, axis=0)
    peaks = np.abs(kspace[0])
    scratch = np.empty_like(peaks)
    for coil in kspace[1:]:
        np.maximum(peaks, np.abs(coil, out=scratch), out=peaks)
    peaks = _largest(_largest(peaks, 0), 1)
    np.log(peaks / max(float(np.median(peaks[::2, ::2])), 1e-30) + KSPACE_FLOOR, out=features[0, 2])
    features[0, 2] *= 0.5
    np.clip(features, -LARGEST, LARGEST, out=features)
    return features


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
