# SPDX-License-Identifier: Apache-2.0
"""Quantise images to integers for scanner, PACS and display, with one scale for a whole scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace
from appliance.frames import Array

FIRST_MAXIMUM = 8191  # of 65535: frames may become eight times brighter than the first before they clip
FEWEST_LEVELS = 64  # an image with fewer grey levels is told apart


def scale_for(first_image: Array) -> float:
    """Return the factor that takes the maximum of a scan's first image to `FIRST_MAXIMUM`.

    Parameters
    ----------
    first_image : float, any shape, host or device; not modified. NaN and Inf are ignored.
        1.0 is returned for an image without a positive finite value.
    """
    return _scale_of(first_image) or 1.0


def _scale_of(image: Array) -> float | None:
    """The scale that `image` asks for; None where it shows nothing."""
    xp = namespace(image)
    maximum = float(xp.max(xp.where(xp.isfinite(image), image, 0), initial=0))
    return FIRST_MAXIMUM / maximum if maximum > 0 else None


class ScanScale:
    """The scale of one scan, decided by its first image that shows anything: an empty one must not decide."""

    def __init__(self) -> None:
        self._scale: float | None = None

    @property
    def decided(self) -> bool:
        """Whether an image has decided."""
        return self._scale is not None

    def of(self, image: Array) -> float:
        """Return the scale for `image`."""
        if self._scale is None:
            self._scale = _scale_of(image)
        return 1.0 if self._scale is None else self._scale


def remarks(pixels: Array, n_clipped: int) -> tuple[str, ...]:
    """Say what quantising cost the image: texts for people, none when it cost nothing."""
    texts = []
    if n_clipped:
        texts.append(f"CLIPPED: {n_clipped} pixels lie outside the range that the first image of the scan set")
    if 0 < (largest := int(pixels.max(initial=0))) < FEWEST_LEVELS:
        texts.append(f"COARSE: only {largest} grey levels are left by the scale that the first image of the scan set")
    return tuple(texts)


def to_integers(image: Array, scale: float, dtype: type[np.integer]) -> tuple[Array, int]:
    """Return ``round(image * scale)`` as `dtype` on the same device, and how many pixels were clipped.

    Values outside the range of `dtype` are clipped; NaN becomes 0 and counts as clipped.
    """
    xp, limits = namespace(image), np.iinfo(dtype)
    scaled = xp.rint(image * xp.float32(scale))
    kept = (scaled >= limits.min) & (scaled <= limits.max)
    n_clipped = int(kept.size - xp.count_nonzero(kept))
    if n_clipped:
        scaled = xp.clip(xp.where(xp.isnan(scaled), 0, scaled), limits.min, limits.max)
    return scaled.astype(dtype), n_clipped


def to_uint16(image: Array, scale: float) -> tuple[NDArray[np.uint16] | Array, int]:
    """`to_integers` of 16 bits without a sign: magnitudes."""
    return to_integers(image, scale, np.uint16)
