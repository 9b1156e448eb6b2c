# SPDX-License-Identifier: Apache-2.0
"""Quantise images to integers for scanner, PACS and display, with one scale for a whole scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace
from appliance.frames import Array

FIRST_MAXIMUM = 8191  # of 65535: frames may become eight times brighter than the first before they clip


def scale_for(first_image: Array) -> float:
    """Return the factor that takes the maximum of a scan's first image to `FIRST_MAXIMUM`.

    Parameters
    ----------
    first_image : float, any shape, host or device; not modified. NaN and Inf are ignored.
        1.0 is returned for an image without a positive finite value.
    """
    xp = namespace(first_image)
    maximum = float(xp.max(xp.where(xp.isfinite(first_image), first_image, 0), initial=0))
    return FIRST_MAXIMUM / maximum if maximum > 0 else 1.0


def to_uint16(image: Array, scale: float) -> tuple[NDArray[np.uint16] | Array, int]:
    """Return ``round(image * scale)`` as uint16 on the same device, and how many pixels were clipped.

    Values below 0 and above 65535 are clipped; NaN becomes 0 and counts as clipped.
    """
    xp = namespace(image)
    scaled = xp.rint(image * xp.float32(scale))
    kept = (scaled >= 0) & (scaled <= 65535)
    n_clipped = int(kept.size - xp.count_nonzero(kept))
    if n_clipped:
        scaled = xp.clip(xp.where(xp.isnan(scaled), 0, scaled), 0, 65535)
    return scaled.astype(xp.uint16), n_clipped
