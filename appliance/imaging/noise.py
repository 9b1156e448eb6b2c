# SPDX-License-Identifier: Apache-2.0
"""Estimate the noise of a magnitude image from the image alone."""

from __future__ import annotations

from appliance.arrays import namespace
from appliance.frames import Array

_MAD_TO_SIGMA = 1.4826  # normal distribution: sigma over the median of absolute values
_FEWEST_BLOCKS = 16


def estimate_noise(image: Array) -> float:
    """Return the standard deviation of the noise in the bright half of `image`, in its units.

    Median absolute diagonal Haar coefficient of 2 × 2 blocks, which smooth tissue and straight edges hardly enter.
    Only blocks brighter than the mean count: in air, magnitude noise is Rayleigh and its spread is 0.655 times that
    in tissue. Blocks with a zero were masked by somebody and do not count either. Fine structure reads as noise: a
    noise-free anatomical image gives a little more than 0.

    Parameters
    ----------
    image : float, (y, x), host or device; not modified. Fewer than 16 blocks with signal give 0; NaN gives NaN.

    References
    ----------
    Donoho, Johnstone 1994, doi:10.1093/biomet/81.3.425; Gudbjartsson, Patz 1995, doi:10.1002/mrm.1910340618.
    """
    xp = namespace(image)
    even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    a, b, c, d = even[::2, ::2], even[::2, 1::2], even[1::2, ::2], even[1::2, 1::2]
    mean = (a + b + c + d) / 4
    diagonal = xp.abs(a - b - c + d) / 2
    if not bool(xp.isfinite(mean).all()):
        return float("nan")
    lit = (a > 0) & (b > 0) & (c > 0) & (d > 0)
    if int(lit.sum()) < _FEWEST_BLOCKS:
        return 0.0
    bright = lit & (mean >= mean[lit].mean())
    return float(xp.median(diagonal[bright])) * _MAD_TO_SIGMA
