# SPDX-License-Identifier: Apache-2.0
"""Three of five begin an alarm, five good frames end it."""

from itertools import product

import pytest

from appliance.faults.vote import Vote


def told(hits):
    vote = Vote()
    alarming = []
    for hit in hits:
        vote.add(bool(hit))
        alarming.append(vote.alarming)
    return alarming


def test_a_persistent_fault_is_an_alarm_with_its_third_frame():
    assert told([0, 0, 1, 1, 1, 1]) == [False, False, False, False, True, True]


@pytest.mark.parametrize("hits", list(product([0, 1], repeat=5)))
def test_five_frames_alarm_when_three_of_them_are_hits(hits):
    assert told(hits)[-1] == (sum(hits) >= 3)


def test_an_alarm_lasts_until_five_frames_have_nothing():
    assert told([1, 1, 1, 0, 0, 0, 0, 0]) == [False, False, True, True, True, True, True, False]
    assert told([1, 1, 1, 0, 0, 0, 0, 1, 0, 0]) == [False, False, *[True] * 8], "a single hit keeps it"


def test_two_hits_far_apart_are_none():
    assert not any(told([1, 0, 0] * 10))
