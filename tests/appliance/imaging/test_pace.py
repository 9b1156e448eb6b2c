# SPDX-License-Identifier: Apache-2.0
"""The pace of previews, by a clock of the test's own: the rate is kept, and what is shown has not waited."""

import numpy as np
import pytest

from appliance.imaging.pace import Pace

RATE_HZ = 30.0


def play(arrivals_s, rate_hz=RATE_HZ):
    """Give [(when shown, when it came)] of a sink that shows the newest by `Pace`."""
    pace, shown, waiting = Pace(rate_hz), [], None
    for now_s, after_s in zip(arrivals_s, [*arrivals_s[1:], np.inf], strict=True):
        waiting = now_s
        if pace.may_show(now_s, has_just_come=True):
            shown.append((now_s, now_s))
        elif pace.due_s < after_s:  # its turn comes before a newer one does
            assert pace.may_show(pace.due_s, has_just_come=False)
            shown.append((pace.due_s, waiting))
        else:
            continue
        pace.shown(shown[-1][0])
    return np.array(shown)


@pytest.mark.parametrize("source_hz", [10, 29.9, 30, 30.1, 45, 60, 200, 1000])
@pytest.mark.parametrize("jitter_s", [0, 0.005])
def test_the_rate_is_kept_and_nothing_waits(source_hz, jitter_s):
    n = int(60 * source_hz)
    arrivals_s = 1000 + np.sort(np.arange(n) / source_hz + np.random.default_rng(2).uniform(0, jitter_s, n))
    shown_s, came_s = play(arrivals_s).T
    assert len(shown_s) <= RATE_HZ * (shown_s[-1] - shown_s[0]) + 2
    assert len(shown_s) >= 0.97 * min(source_hz, RATE_HZ) * 60
    assert np.mean(shown_s - came_s > 0.001) < 0.02, "at whatever rate they come"
    in_a_second = [np.sum((shown_s >= start) & (shown_s < start + 1)) for start in np.arange(1000, 1059, 0.1)]
    assert max(in_a_second) <= RATE_HZ + 2


def test_the_last_one_is_shown_in_its_turn():
    shown = play([10.0, 10.001, 10.002, 10.003])
    assert shown == pytest.approx(np.array([[10.0, 10.0], [10.001, 10.001], [10.0 + 2 / RATE_HZ, 10.003]]))


def test_after_a_pause_there_is_no_burst():
    shown = play([10.0, 20.0, 20.001, 20.002, 20.003])
    assert len(shown) == 4
    assert shown[-1] == pytest.approx([20.0 + 2 / RATE_HZ, 20.003])
