# SPDX-License-Identifier: Apache-2.0
"""How far is the data that a model meets from the data that its card was made with? Mathematics only.

The distance is Jensen and Shannon's, base 2: 0 the same, 1 nothing in common; unlike the population stability index it
takes empty bins. Data are unlike the card where they are farther from the training images than 99 of 100 of those are
one by one, and farther than a stability index of 0.25, which that index calls a significant shift.

References: Lin 1991, doi:10.1109/18.61115; Endres, Schindelin 2003, doi:10.1109/TIT.2003.813506 (the distance); Siddiqi
2006, Credit Risk Scorecards, ISBN 978-0-471-75451-0 (0.25).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.arrays import to_host
from appliance.frames import Array

QUANTITIES = {
    "input": "image over its scale",
    "output": "result over its scale",
    "level": "noise level over the image's scale",
    "removed": "what was removed over the noise level",
}
SIGNIFICANT = math.sqrt(0.25 / 8 / math.log(2))  # 0.21: a small stability index is 8 times the divergence in nats
_USUAL = 0.99
_SAMPLES_A_SIDE = 64
_EDGES_AT = (0.001, *(n / 10 for n in range(1, 10)), 0.999)  # deciles, and ends: what lies outside the training is seen

Counts = NDArray[np.int64]


class Distribution(BaseModel):
    """What one quantity was at training: shares of the values below, between and above `edges`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    edges: tuple[float, ...] = Field(min_length=1)
    shares: tuple[float, ...]
    usual: float = Field(ge=0, le=1, description="distance that 99 of 100 single training images keep")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.shares) != len(self.edges) + 1 or abs(sum(self.shares) - 1) > 1e-3 or min(self.shares) < 0:
            raise ValueError(f"expected {len(self.edges) + 1} shares that add up to 1, got {len(self.shares)}")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("expected edges that increase")
        return self

    @property
    def limit(self) -> float:
        """Distance beyond which a window is unlike it."""
        return max(self.usual, SIGNIFICANT)


class Reference(BaseModel):
    """A card's `drift`: the distributions of its training data."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    input: Distribution
    output: Distribution
    level: Distribution
    removed: Distribution


# Where the card has no reference there still is a trend to look at.
_PLAIN_EDGES = {
    "input": tuple(np.linspace(-1, 2, 16).round(2).tolist()),
    "output": tuple(np.linspace(-1, 2, 16).round(2).tolist()),
    "level": tuple(np.linspace(0, 0.3, 16).round(2).tolist()),
    "removed": tuple(np.linspace(-4, 4, 17).round(2).tolist()),
}


def edges_of(known: Reference | None) -> dict[str, tuple[float, ...]]:
    """Return the bins of each quantity."""
    return {name: getattr(known, name).edges if known else _PLAIN_EDGES[name] for name in QUANTITIES}


def distance(first: Array, second: Array) -> float:
    """Return the Jensen-Shannon distance, base 2, of two histograms (n,), which need not be normalised."""
    p, q = (np.asarray(one, float) / np.sum(one) for one in (first, second))
    mean = (p + q) / 2
    terms = [one[one > 0] * np.log2(one[one > 0] / mean[one > 0]) for one in (p, q)]
    return math.sqrt(max(float(np.concatenate(terms).sum()) / 2, 0.0))  # rounding may take it below 0


def samples(
    image: Array, result: Array, level: Array, scale: float, strength: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """Return the finite values of each quantity on a grid of at most 64 × 64 pixels.

    `image` and `result` are (y, x), `level` the standard deviation of the noise, one number or (y, x), all in the same
    units. `strength` says which part of the noise was taken out: what counts is all that the model named.
    """
    grid = tuple(slice(step // 2, None, step) for step in (-(-n // _SAMPLES_A_SIDE) for n in image.shape))
    before, after = to_host(image[grid]), to_host(result[grid])
    if strength != 1:
        after = before - (before - after) / np.float32(strength)
    noise = to_host(level[grid]) if np.ndim(level) else np.broadcast_to(np.float32(level), before.shape)
    noisy = noise > 0
    with np.errstate(all="ignore"):  # what is not finite is left out
        found = {
            "input": before / np.float32(scale),
            "output": after / np.float32(scale),
            "level": noise / np.float32(scale),
            "removed": (before[noisy] - after[noisy]) / noise[noisy],
        }
    return {name: values[np.isfinite(values)] for name, values in found.items()}


def _histogram(values: NDArray[np.float32], edges: Sequence[float]) -> Counts:
    return np.bincount(bin_numbers(values, edges), minlength=len(edges) + 1)


def bin_numbers(values: NDArray[np.float32], edges: Sequence[float]) -> Counts:
    """Return which bin each value is in: 0 below the first edge, n from the n-th edge up to the next."""
    found: Counts = np.searchsorted(np.asarray(edges, np.float32), values, side="right")
    return found


def reference(images: Iterable[Array], results: Iterable[Array], levels: Iterable[Array]) -> dict[str, Any]:
    """Return what training writes into the card as `drift`: plain lists and numbers.

    Image by image, as the stage would give them: what goes into the model (y, x), what remains of it without the noise
    (y, x), and the noise level, one or (y, x), all divided by the scale that takes the brightest tissue to about 1.
    Take a hundred images at least, of every kind that the model is made for: what is usual is learnt here. Raises
    ValueError when there is nothing to learn from.
    """
    each = [samples(*three, 1.0) for three in zip(images, results, levels, strict=True)]
    for name, what in QUANTITIES.items():
        if not any(one[name].size for one in each):
            raise ValueError(f"reference: no image has a finite value of {name} ({what}); look at levels and results")
    return {name: _distribution([one[name] for one in each if one[name].size]) for name in QUANTITIES}


def _distribution(images: list[NDArray[np.float32]]) -> dict[str, Any]:
    edges = sorted({float(f"{edge:.4g}") for edge in np.quantile(np.concatenate(images), _EDGES_AT).tolist()})
    histograms = [_histogram(image, edges) for image in images]
    whole = np.sum(histograms, axis=0)
    usual = np.quantile([distance(one, whole) for one in histograms], _USUAL)
    return {"edges": edges, "shares": (whole / whole.sum()).round(6).tolist(), "usual": round(float(usual), 4)}
