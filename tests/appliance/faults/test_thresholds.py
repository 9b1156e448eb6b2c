# SPDX-License-Identifier: Apache-2.0
"""Thresholds from the tail of clean measurements, against distributions whose quantiles are known."""

import numpy as np
import pytest

from appliance.faults.detector import Rule
from appliance.faults.measurements import Measurements
from appliance.faults.thresholds import CommissioningError, learn_setup, tail_quantile

RULES = {"spike": Rule("times", 4.0, 1.0), "lost": Rule("part", 0.5, 0.3)}


def measured(n=600, rules=("spike", "lost"), seed=0):
    rng = np.random.default_rng(seed)
    frames = np.stack([1.5 + 0.1 * rng.exponential(size=n), 0.1 * rng.random(n)], axis=1)
    return Measurements("8 coils", rules, frames.astype(np.float32))


@pytest.mark.parametrize("probability", [1e-5, 1e-6, 1e-7])  # rarer than the largest of 20,000
def test_the_quantile_of_an_exponential_tail_is_the_known_one(probability):
    known = -np.log(probability)
    found = [tail_quantile(np.random.default_rng(seed).exponential(size=20_000), probability) for seed in range(20)]
    assert np.mean(found) == pytest.approx(known, rel=0.15), "the shape is bounded to 0 from below: a little high"
    assert min(found) > 0.85 * known


def test_a_heavy_tail_gets_a_higher_threshold_and_a_short_one_no_lower_than_exponential():
    rng = np.random.default_rng(0)
    known = 2 * ((1e-5) ** -0.5 - 1)  # generalised Pareto of shape 0.5 and scale 1
    assert tail_quantile(2 * (rng.random(50_000) ** -0.5 - 1), 1e-5) == pytest.approx(known, rel=0.4)
    assert tail_quantile(rng.random(20_000), 1e-5) > 1.3, "a uniform one ends at 1"


def test_500_clean_frames_are_rarely_exceeded_by_20000_others():
    setup = learn_setup(measured(500), RULES, 1e-4)
    others = 1.5 + 0.1 * np.random.default_rng(9).exponential(size=20_000)
    assert np.count_nonzero(others > setup.rules["spike"].threshold) <= 2
    assert setup.rules["spike"].threshold < 4, "and it is more sensitive than by default"
    assert setup.rules["lost"].threshold >= 0.3, "the least that is worth an alarm"


def test_a_value_that_never_changes_gives_itself():
    assert tail_quantile(np.ones(600), 1e-6) == 1


def test_doubtful_frames_are_left_out_or_refused():
    few = measured()
    few.frames[:3, 0] = 50
    setup = learn_setup(few, RULES, 1e-4)
    assert (setup.n_frames, setup.rules["spike"].threshold < 4) == (597, True)
    many = measured()
    many.frames[:20, 0] = 50
    with pytest.raises(CommissioningError, match="20 of 600 frames exceed a default threshold; look at what was found"):
        learn_setup(many, RULES, 1e-4)
    assert learn_setup(many, RULES, 1e-4, all_clean=True).rules["spike"].threshold >= 50


def test_too_few_frames_are_refused_and_a_rule_without_a_basis_is_left_out():
    with pytest.raises(CommissioningError, match="8 coils: 499 clean frames, 500 are needed; scan on, then try again"):
        learn_setup(measured(499), RULES, 1e-4)
    some = measured()
    some.frames[:200, 1] = np.nan
    assert list(learn_setup(some, RULES, 1e-4).rules) == ["spike"]
    some.frames[:200, 0] = np.nan
    with pytest.raises(CommissioningError, match="8 coils: no rule measured anything in 500 of 600 clean frames; look"):
        learn_setup(some, RULES, 1e-4)
