# SPDX-License-Identifier: Apache-2.0
"""Thresholds for a stated rate of false alarms, from what the rules measured of clean frames.

The largest tenth of the values of each rule is fitted with a generalised Pareto distribution by probability-weighted
moments, and the threshold is its quantile at the stated rate, shared among the rules. The fitted tail is never taken
to be shorter than exponential. No credit is taken for the vote of three in five frames: frames of one scan resemble
each other, so that the vote may help little. 500 frames show directly what happens once in 500; what is rarer is the
fit's extrapolation, and frames of one patient say little of the next: commission on many.

References: Hosking, Wallis 1987, DOI 10.1080/00401706.1987.10488243; Coles 2001, DOI 10.1007/978-1-4471-3675-0 ch. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import NearscanError
from appliance.faults.commissioned import Learnt, Setup
from appliance.faults.detector import Rule
from appliance.faults.measurements import Measurements

FEWEST_FRAMES = 500
TAIL_PART = 0.1  # of the frames; 50 of 500
HEAVIEST_TAIL = 0.5  # shape; from there on the variance is infinite
MOST_SUSPECT_PART = 0.01

Floats = NDArray[np.floating[Any]]


class CommissioningError(NearscanError):
    """What was measured does not make thresholds."""


def tail_quantile(values: Floats, probability: float) -> float:
    """Return the value that is exceeded with `probability`, from the largest tenth of `values` (n,)."""
    ordered = np.sort(np.asarray(values, np.float64))
    n_tail = max(int(TAIL_PART * len(ordered)), 2)
    start, excess = float(ordered[-n_tail - 1]), ordered[-n_tail:] - ordered[-n_tail - 1]
    mean = float(excess.mean())
    if mean <= 0:  # nothing but one value, e.g. a count that is always 1
        return float(ordered[-1])
    weighted = float((excess * np.arange(n_tail - 1, -1, -1)).mean() / (n_tail - 1))  # E[x (1 - F(x))]
    shape = 2 - mean / max(mean - 2 * weighted, 1e-12 * mean)
    shape = float(np.clip(shape, 0, HEAVIEST_TAIL))
    scale = mean * (1 - shape)  # so that the fit keeps the mean when the shape is bounded
    part = n_tail / len(ordered) / probability
    beyond = np.log(part) if shape < 1e-6 else (part**shape - 1) / shape
    return max(start + scale * float(beyond), float(ordered[-1]))


def suspect(measured: Measurements, rules: Mapping[str, Rule]) -> NDArray[np.bool_]:
    """Return which frames exceed a default threshold, (frame,): they may not have been clean."""
    limits = [rules[name].default if name in rules else None for name in measured.rules]
    limits_or_inf = np.array([np.inf if limit is None else limit for limit in limits])
    return np.asarray((np.nan_to_num(measured.frames, nan=-np.inf) > limits_or_inf).any(axis=1))


def learn_setup(measured: Measurements, rules: Mapping[str, Rule], rate: float, *, all_clean: bool = False) -> Setup:
    """Return thresholds that clean frames exceed at `rate`, all rules together.

    Raises CommissioningError with fewer than FEWEST_FRAMES frames, when more than one in a hundred exceeds a
    default threshold and nobody said that `all_clean` were, or when no rule has a basis.
    """
    frames = measured.frames
    if not all_clean:
        doubtful = suspect(measured, rules)
        if doubtful.sum() > MOST_SUSPECT_PART * len(frames):
            raise CommissioningError(
                f"{measured.setup}: {int(doubtful.sum())} of {len(frames)} frames exceed a default threshold; look at "
                "what was found, then record clean frames with --forget, or say --all-clean if they were"
            )
        frames = frames[~doubtful]
    if len(frames) < FEWEST_FRAMES:
        raise CommissioningError(
            f"{measured.setup}: {len(frames)} clean frames, {FEWEST_FRAMES} are needed; scan on, then try again"
        )
    columns = {name: frames[:, i] for i, name in enumerate(measured.rules) if name in rules}
    known = {name: column[np.isfinite(column)] for name, column in columns.items()}
    known = {name: values for name, values in known.items() if len(values) >= FEWEST_FRAMES}
    if not known:
        raise CommissioningError(
            f"{measured.setup}: no rule measured anything in {FEWEST_FRAMES} of {len(frames)} clean frames; "
            "look at what the detect_anomalies stage says of its rules"
        )
    share = rate / len(known)
    return Setup(
        n_frames=len(frames), rules={name: _learn(values, rules[name], share) for name, values in known.items()}
    )


def _learn(values: Floats, rule: Rule, rate: float) -> Learnt:
    centre = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - centre)))
    least = -np.inf if rule.least is None else rule.least
    threshold = max(tail_quantile(values, rate), least)
    return Learnt(threshold=threshold, centre=centre, spread=max(spread, 1e-3 * abs(centre), 1e-6))
