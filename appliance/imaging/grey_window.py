# SPDX-License-Identifier: Apache-2.0
"""Grey levels for a screen: a window that follows the images slowly, and 8-bit pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_EVERY = 8  # images between two looks at the grey values
_REMOVED_GAIN = 8
_SHARE = 0.15  # of the way to the new window at each look: some two seconds, no flicker


def grey_window(image: NDArray[np.float32]) -> tuple[float, float]:
    """Return the 1 and 99.5 % percentiles of the finite values of every second row and column of (y, x)."""
    values = image[::2, ::2]
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [1, 99.5]).tolist() if values.size else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def to_grey(image: NDArray[np.float32], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Map `window` to 0…255, clipped; NaN becomes black."""
    low, high = window
    grey: NDArray[np.uint8] = np.nan_to_num(np.clip((image - low) * (255 / (high - low)), 0, 255)).astype(np.uint8)
    return grey


def removed_grey(
    before: NDArray[np.float32], after: NDArray[np.float32], window: tuple[float, float]
) -> NDArray[np.uint8]:
    """Show what processing took away, `before` less `after`: nothing is mid grey (127), taken away is brighter.

    Eight times as strong as the images at `window`, for noise would hardly be seen at their contrast.
    """
    low, high = window
    reach = (high - low) / (2 * _REMOVED_GAIN)
    return to_grey(before - after, (-reach, reach))


class SlowWindow:
    """The window of a scan: that of its first image, then following slowly."""

    def __init__(self, first_image: NDArray[np.float32]) -> None:
        self.window = grey_window(first_image)
        self._n_images = 0

    def follow(self, image: NDArray[np.float32]) -> tuple[float, float]:
        """Take one more image into account and return the window to show it with."""
        self._n_images += 1
        if self._n_images % _EVERY == 0:
            (low, high), (new_low, new_high) = self.window, grey_window(image)
            self.window = low + _SHARE * (new_low - low), high + _SHARE * (new_high - high)
        return self.window
