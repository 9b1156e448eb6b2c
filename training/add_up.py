# SPDX-License-Identifier: Apache-2.0
"""Add up the frames of a series where nothing changed: the memory of mr-denoise-cine, a part of its graph.

The memory is a running mean and how many frames are in it, for each pixel. A frame is compared with the mean, in units
of what noise makes of their difference, over 2 x 2 and 6 x 6 pixels: as a shift (the mean difference, which finds faint
areas that moved) and as a spread (the mean square, which finds edges). Where one of the four is larger than noise makes
it, the frames before count for less, down to nothing. It is a rule, not something learnt: it can be computed by hand
what it lets through.

Reference: Dubois, Sabri 1984, doi:10.1109/TCOM.1984.1096143 (recursive filtering with motion detection).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from training.operations import Operations

MOST_FRAMES = 16  # in the mean; a change too faint to be found has faded to a third after as many
# From what size the frames before count for less, and from what for nothing, by what is compared. Of independent normal
# noise the square of a shift in its standard deviation is above 5 in 3 % and above 10 in 0.2 % of all places (chi
# squared, 1 degree of freedom), a spread over 36 pixels above 1.4 in 6 % and above 1.8 in 0.3 % (36 degrees); the small
# windows are tested more leniently, for there are more of them.
SHIFT_2, SHIFT_6 = (8.0, 16.0), (5.0, 10.0)
SPREAD_2, SPREAD_6 = (3.0, 5.0), (1.4, 1.8)
_LEAST_LEVEL = 1e-4  # of an image of about 1: divides where no noise is

Limits = tuple[float, float]


class Added(NamedTuple):
    """The mean with this frame in it, its noise level, and the next memory."""

    mean: Any
    level: Any
    memory: Any


def add_up(f: Operations, image: Any, level: Any, memory: Any) -> Added:
    """Describe one frame's step in terms of `f`.

    `memory` is (batch, 2, y, x), zeros at first: the mean, and its number of frames over MOST_FRAMES, so that both are
    of the order of 1 and an engine's rounding is judged alike.
    """
    mean, count = f.channel(memory, 0), f.line(f.channel(memory, 1), MOST_FRAMES, 0)
    change = f.subtract(image, mean)
    kept = f.multiply(count, f.double(_agreement(f, change, level, count)))
    total = f.line(kept, 1, 1)
    mean = f.add(mean, f.divide(change, total))
    share = f.clip(f.line(total, 1 / MOST_FRAMES, 0), 0, 1 - 1 / MOST_FRAMES)
    return Added(mean, f.divide(level, f.root(total)), f.join(mean, share))


def _agreement(f: Operations, change: Any, level: Any, count: Any) -> Any:
    """Return 1 where `change` is what noise makes it, 0 where it is not, at half the resolution."""
    known = f.root(f.divide(count, f.line(count, 1, 1)))  # 0 where nothing is known: any change agrees
    change = f.multiply(f.divide(change, f.line(level, 1, _LEAST_LEVEL)), known)
    small = f.halve(f.join(change, f.multiply(change, change)))
    large = f.neighbours(small)
    return f.smaller(_one_size(f, small, 4, SHIFT_2, SPREAD_2), _one_size(f, large, 36, SHIFT_6, SPREAD_6))


def _one_size(f: Operations, moments: Any, n_pixels: int, shift: Limits, spread: Limits) -> Any:
    mean, square = f.channel(moments, 0), f.channel(moments, 1)
    return f.smaller(_falling(f, f.multiply(mean, mean), shift, n_pixels), _falling(f, square, spread))


def _falling(f: Operations, x: Any, limits: Limits, times: float = 1.0) -> Any:
    """Return 1 up to the first of `limits` of `times` x, falling to 0 at the second."""
    low, high = limits
    return f.clip(f.line(x, -times / (high - low), high / (high - low)), 0, 1)
