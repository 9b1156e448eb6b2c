# SPDX-License-Identifier: Apache-2.0
"""The spread that most of an image's small blocks agree on: noise that is correlated is told no other way."""

from __future__ import annotations

from appliance.arrays import namespace
from appliance.frames import Array

_FEWEST_BLOCKS = 16


def block_moments(image: Array, block_px: int) -> tuple[Array, Array]:
    """Return mean and standard deviation of each block of `block_px` squared, (y // block_px, x // block_px).

    `image` is (y, x); a rest that fills no block is left out.
    """
    xp = namespace(image)
    ny, nx = (n // block_px for n in image.shape)
    blocks = image[: ny * block_px, : nx * block_px].reshape(ny, block_px, nx, block_px).astype(xp.float32)
    mean = blocks.mean(axis=(1, 3), keepdims=True)
    std = xp.sqrt(((blocks - mean) ** 2).sum(axis=(1, 3)) / (block_px**2 - 1))
    return mean[:, 0, :, 0], std


def most_common(values: Array) -> float:
    """Return the middle of the shortest interval with half of `values` (1-d), again and again: their mode.

    0 where there are fewer than 16. Reference: Robertson, Cryer 1974, doi:10.1080/01621459.1974.10480246.
    """
    xp = namespace(values)
    if values.size < _FEWEST_BLOCKS:
        return 0.0
    values = xp.sort(values)
    while values.size >= _FEWEST_BLOCKS:
        half = values.size // 2
        width = values[half:] - values[: values.size - half]
        start = int(width.argmin())
        values = values[start : start + half + 1] if half + 1 < values.size else values[:half]
    return float(values.mean())
