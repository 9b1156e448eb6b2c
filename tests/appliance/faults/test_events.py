# SPDX-License-Identifier: Apache-2.0
"""Findings become events: one for as long as a fault lasts."""

from appliance.faults.events import N_EVENTS, EventLog
from appliance.frames import Finding


def drop(coil):
    return Finding("coil_drop", f"coil {coil} gives no data", where={"coil": coil})


def test_what_lasts_is_one_event_with_its_first_and_last_frame():
    log = EventLog()
    told = [log.record(sequence, 0, [drop(3)])[0].message for sequence in (7, 8, 9)]
    assert told == ["coil 3 gives no data", *["coil 3 gives no data (since frame 7)"] * 2]
    log.record(10, 0, [])
    log.record(11, 0, [drop(3), drop(4)])
    event = {"kind": "coil_drop", "where": {"coil": 3}, "message": "coil 3 gives no data"}
    assert log.status() == {
        "findings": {"coil_drop": 5},
        "events": [
            {**event, "sequence": 7, "last_sequence": 9},
            {**event, "sequence": 11, "last_sequence": 11},
            {
                "kind": "coil_drop",
                "sequence": 11,
                "last_sequence": 11,
                "where": {"coil": 4},
                "message": "coil 4 gives no data",
            },
        ],
    }


def test_slices_are_followed_apart():
    log = EventLog()
    for sequence in range(0, 12, 3):
        log.record(sequence, 0, [drop(1)])
        log.record(sequence + 1, 1, [])
        log.record(sequence + 2, 2, [drop(1)])
    assert [(e["sequence"], e["last_sequence"]) for e in log.status()["events"]] == [(0, 9), (2, 11)]


def test_only_the_newest_events_are_kept_and_a_reader_gets_copies():
    log = EventLog()
    for sequence in range(0, 2 * (N_EVENTS + 5), 2):
        log.record(sequence, 0, [drop(0)])
        log.record(sequence + 1, 0, [])
    events = log.status()["events"]
    assert (len(events), events[0]["sequence"]) == (N_EVENTS, 10)
    events[0]["kind"] = "changed"
    assert log.status()["events"][0]["kind"] == "coil_drop"
