# SPDX-License-Identifier: Apache-2.0
"""Estimate the noise of a CT image from the image alone."""

from __future__ import annotations

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.imaging.block_noise import block_moments, most_common

BLOCK_PX = 8  # 2 to 4 grains: a block of 6 takes up to a quarter of coarse noise for its own mean
SOFT_TISSUE_HU = (-150.0, 150.0)  # fat to contrast-filled vessels
PADDING_HU = -1100.0  # below it nothing was measured


def estimate_ct_noise(image: Array) -> float:
    """Return the standard deviation of the noise in soft tissue, HU: the one most blocks of 8 × 8 pixels agree on.

    The noise of a reconstructed image is correlated: differences of neighbours say little of it, a block's spread
    does. Where there is hardly any soft tissue, all that was measured counts, air too, and 0 where that is nothing.

    Parameters
    ----------
    image : float, (y, x), HU, host or device; not modified. NaN gives NaN.

    References
    ----------
    Christianson et al. 2015, doi:10.2214/AJR.14.13613 (global noise level).
    """
    xp = namespace(image)
    mean, std = block_moments(image, BLOCK_PX)
    if not bool(xp.isfinite(mean).all()):
        return float("nan")
    soft = (mean > SOFT_TISSUE_HU[0]) & (mean < SOFT_TISSUE_HU[1])
    return most_common(std[soft]) or most_common(std[(mean > PADDING_HU) & (std > 0)])
