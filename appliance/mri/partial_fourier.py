# SPDX-License-Identifier: Apache-2.0
"""Homodyne reconstruction of partial Fourier data: lines missing on one side of k-space.

References: Noll, Nishimura, Macovski, IEEE TMI 1991;10:154, DOI 10.1109/42.79473.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.mri.fourier import to_image, to_kspace

MIN_SYMMETRIC_LINES = 4  # on each side of the centre; fewer do not carry the phase


def is_partial(n: int, first: int, last: int) -> bool:
    """Whether lines `first` … `last` of `n` miss one side of k-space by more than a few dropped lines would."""
    centre = n // 2
    return abs((centre - first) - (last - centre)) > n // 16


def homodyne_filter(n: int, first: int, last: int) -> NDArray[np.float32]:
    """Weights (n,) of the lines: 0 where missing, 2 where the mirrored line is missing, a ramp between.

    Raises ValueError when the acquired lines `first` … `last` do not reach past the centre.
    """
    centre = n // 2
    width = min(centre - first, last - centre)
    if width < MIN_SYMMETRIC_LINES:
        raise ValueError(
            f"homodyne: lines {first} … {last} of {n} hold {max(width, 0)} lines beyond the centre {centre}; "
            f"acquire at least {MIN_SYMMETRIC_LINES}"
        )
    side = 1 if last - centre > centre - first else -1
    distance = side * (np.arange(n) - centre)
    return np.clip(1 + distance / (width + 1), 0, 2).astype(np.float32)


def homodyne(image: Array, first: int, last: int) -> Array:
    """Return the image, complex64 (y, x), that the missing lines' conjugate symmetry gives; its phase is the smooth one
    of the symmetric centre.

    `image` is what the acquired lines `first` … `last` (along y, centre at n // 2) give with zeros elsewhere. The
    real part after phase correction is kept, so its noise grows by the root mean square of `homodyne_filter`.
    """
    xp = namespace(image)
    n = image.shape[0]
    distance = np.abs(np.arange(n) - n // 2) / (min(n // 2 - first, last - n // 2) + 1)
    window = np.where(distance < 1, np.cos(np.pi / 2 * distance) ** 2, 0).astype(np.float32)
    kspace = to_kspace(image, (0,))
    smooth = to_image(kspace * xp.asarray(window)[:, None], (0,))
    phase = smooth / xp.maximum(xp.abs(smooth), np.finfo(np.float32).tiny)
    filtered = to_image(kspace * xp.asarray(homodyne_filter(n, first, last))[:, None], (0,))
    return (filtered * phase.conj()).real * phase
