# SPDX-License-Identifier: Apache-2.0
"""Centred orthonormal Fourier transforms, and cutting or extending what is on one side of them.

The centre of n samples is n // 2 on both sides, for odd and even n. Sign as in ISMRMRD: k-space to image is
the inverse transform, so an index that grows in k-space grows along the image's axis.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft

from appliance.arrays import namespace
from appliance.frames import Array


def transforms(array: Array) -> ModuleType:
    """Return the FFT module for `array`: scipy's on the host (the faster one there), cupy's on the device."""
    module: Any = scipy.fft if isinstance(array, np.ndarray) else namespace(array).fft
    return module  # type: ignore[no-any-return]


def to_image(kspace: Array, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """Transform `axes` from k-space to image: orthonormal, centre at n // 2; dtype kept, input not modified."""
    fft = transforms(kspace)
    return fft.fftshift(fft.ifftn(fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho"), axes=axes)


def to_kspace(image: Array, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """Transform `axes` from image to k-space: the inverse and the adjoint of `to_image`."""
    fft = transforms(image)
    return fft.fftshift(fft.fftn(fft.ifftshift(image, axes=axes), axes=axes, norm="ortho"), axes=axes)


def resize_centred(array: Array, n: int, axis: int) -> Array:
    """Cut `axis` to the `n` samples around its centre, or extend it with zeros; index n // 2 stays the centre."""
    old = array.shape[axis]
    index = [slice(None)] * array.ndim
    if n <= old:
        first = old // 2 - n // 2
        index[axis] = slice(first, first + n)
        return array[tuple(index)]
    shape = list(array.shape)
    shape[axis] = n
    out = namespace(array).zeros(shape, array.dtype)
    index[axis] = slice(n // 2 - old // 2, n // 2 - old // 2 + old)
    out[tuple(index)] = array
    return out


def remove_oversampling(kspace: Array, n: int, axis: int = -1) -> Array:
    """Keep the `n` central pixels of the image along `axis` (k-space in, k-space out).

    Orthonormal on both sides, so the noise of a sample stays what it was.
    """
    if kspace.shape[axis] == n:
        return kspace
    return to_kspace(resize_centred(to_image(kspace, (axis,)), n, axis), (axis,))


def resample(image: Array, n: int, axis: int) -> Array:
    """Change the pixel count of the same field of view along `axis` by cutting or zero-filling its k-space.

    Pixel values keep their level (a constant stays that constant). `image` must be complex.
    """
    old = image.shape[axis]
    if old == n:
        return image
    scale = np.float32(np.sqrt(n / old))
    return to_image(resize_centred(to_kspace(image, (axis,)), n, axis), (axis,)) * scale
