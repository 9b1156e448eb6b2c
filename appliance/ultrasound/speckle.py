# SPDX-License-Identifier: Apache-2.0
"""Estimate how strong the speckle of a B-mode image is."""

from __future__ import annotations

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.imaging.block_noise import block_moments, most_common

BLOCK_PX = 12  # a few grains of speckle
GREY = (0.1, 0.85)  # of white: darker and brighter blocks are cut off by the display


def estimate_speckle(image: Array, white: float = 255.0) -> float:
    """Return the standard deviation of the speckle in grey levels: the one most blocks of 12 × 12 pixels agree on.

    On a logarithmic display it is the same in bright and dark tissue, 5.6 dB where speckle is fully developed.
    0 where no block is grey.

    Parameters
    ----------
    image : float, (y, x), 0 to `white`, host or device; not modified. NaN gives NaN.

    References
    ----------
    Burckhardt 1978, doi:10.1109/T-SU.1978.30978.
    """
    xp = namespace(image)
    mean, std = block_moments(image, BLOCK_PX)
    if not bool(xp.isfinite(mean).all()):
        return float("nan")
    return most_common(std[(mean > GREY[0] * white) & (mean < GREY[1] * white)])
