# SPDX-License-Identifier: Apache-2.0
"""Partial Fourier: lines missing on one side of k-space, from the conjugate symmetry of an image of known phase.

References: Haacke et al., J Magn Reson 1991;92:126, DOI 10.1016/0022-2364(91)90253-P (projection onto convex sets).
"""

from __future__ import annotations

import numpy as np

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.mri.fourier import to_image, to_kspace

MIN_SYMMETRIC_LINES = 4  # on each side of the centre; fewer do not carry the phase
ITERATIONS = 4  # leave about a tenth of zero-filling's error; each costs two FFTs of one image


def is_partial(n: int, first: int, last: int) -> bool:
    """Whether lines `first` … `last` of `n` miss one side of k-space by more than a few dropped lines would."""
    centre = n // 2
    return abs((centre - first) - (last - centre)) > n // 16


def fill_partial_fourier(image: Array, first: int, last: int) -> Array:
    """Return the image, complex64 (y, x), with the missing lines filled; the acquired ones stay as they are.

    `image` is what the acquired lines `first` … `last` (along y, centre at n // 2) give with zeros elsewhere; it is
    not modified. The phase is taken to be the smooth one of the symmetric centre.
    Raises ValueError when the lines do not reach past the centre.
    """
    xp, n = namespace(image), image.shape[0]
    width = min(n // 2 - first, last - n // 2)
    if width < MIN_SYMMETRIC_LINES:
        raise ValueError(
            f"partial Fourier: lines {first} … {last} of {n} hold {max(width, 0)} lines beyond the centre {n // 2}; "
            f"acquire at least {MIN_SYMMETRIC_LINES}"
        )
    distance = np.abs(np.arange(n) - n // 2) / (width + 1)
    window = np.where(distance < 1, np.cos(np.pi / 2 * distance) ** 2, 0).astype(np.float32)
    kspace = to_kspace(image, (0,))
    smooth = to_image(kspace * xp.asarray(window)[:, None], (0,))
    phase = smooth / xp.maximum(xp.abs(smooth), np.finfo(np.float32).tiny)
    for _ in range(ITERATIONS):
        real = xp.maximum((image * phase.conj()).real, np.float32(0))
        filled = to_kspace(real * phase, (0,))
        filled[first : last + 1] = kspace[first : last + 1]
        image = to_image(filled, (0,))
    return image


def noise_gain(n: int, first: int, last: int) -> float:
    """Return by what factor filling raises the noise of the zero-filled image: mirrored lines count twice."""
    n_acquired, n_missing = last - first + 1, n - (last - first + 1)
    return float(np.sqrt((n_acquired + 3 * n_missing) / n_acquired))
