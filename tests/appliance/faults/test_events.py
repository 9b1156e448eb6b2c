# SPDX-License-Identifier: Apache-2.0
"""Findings become events: one for as long as a fault lasts; what persists becomes an alarm."""

from appliance.faults.events import N_EVENTS, EventLog
from appliance.frames import Finding


def drop(coil, severity="warning"):
    return Finding("coil_drop", f"coil {coil} gives no data", severity, 1.0, 0.7, {"coil": coil})


def test_what_lasts_is_one_event_and_an_alarm_with_its_third_frame():
    log = EventLog()
    told = [log.record(sequence, 0, [drop(3)])[0] for sequence in (7, 8, 9)]
    assert [finding.message for finding in told] == [
        "coil 3 gives no data",
        "coil 3 gives no data (since frame 7, in 2 of the last 5 frames)",
        "coil 3 gives no data (since frame 7, in 3 of the last 5 frames)",
    ]
    assert [finding.severity for finding in told] == ["warning", "warning", "alarm"]
    assert log.alarms() == ["coil 3 gives no data (since frame 7)"]
    for sequence in range(10, 15):
        assert log.alarms() != []
        log.record(sequence, 0, [])
    assert log.alarms() == []
    log.record(15, 0, [drop(3), drop(4)])
    event = {"kind": "coil_drop", "slice": 0, "measured": 1.0, "threshold": 0.7}
    three = event | {"where": {"coil": 3}, "message": "coil 3 gives no data"}
    four = event | {"where": {"coil": 4}, "message": "coil 4 gives no data"}
    new = {"sequence": 15, "last_sequence": 15, "frames": 1, "alarm": False}
    assert log.status() == {
        "findings": {"coil_drop": 5},
        "events": [{**three, "sequence": 7, "last_sequence": 9, "frames": 3, "alarm": True}, three | new, four | new],
    }


def test_what_cannot_be_chance_is_an_alarm_at_once():
    assert EventLog().record(0, 0, [drop(1, "alarm")])[0].severity == "alarm"


def test_a_fault_of_one_slice_in_twenty_persists_too():
    log = EventLog()
    severities = []
    for sequence in range(100):
        told = log.record(sequence, sequence % 20, [drop(1)] if sequence % 20 == 7 else [])
        severities += [finding.severity for finding in told]
    assert severities == ["warning", "warning", "alarm", "alarm", "alarm"]
    (event,) = log.status()["events"]
    assert (event["sequence"], event["last_sequence"], event["slice"], event["frames"]) == (7, 87, 7, 5)


def test_a_fault_of_every_slice_is_an_alarm_with_its_third_frame():
    log = EventLog()
    told = [log.record(sequence, sequence % 20, [drop(1)])[0].severity for sequence in range(4)]
    assert told == ["warning", "warning", "alarm", "alarm"]


def test_spikes_in_one_coil_now_and_another_then_persist_as_a_kind():
    log = EventLog()
    spikes = [Finding("spike", f"spike on coil {coil}", where={"coil": coil}) for coil in range(8)]
    told = [log.record(sequence, 0, [spikes[sequence]])[0].severity for sequence in range(5)]
    assert told == ["warning", "warning", "alarm", "alarm", "alarm"]
    assert log.alarms()[0] == "spike on coil 0 (since frame 0)"


def test_kinds_are_voted_on_apart():
    log = EventLog()
    for sequence in range(9):
        (told,) = log.record(sequence, 0, [Finding(f"kind {sequence % 3}", "")])
        assert told.severity == "warning"


def test_only_the_newest_events_are_kept_and_a_reader_gets_copies():
    log = EventLog()
    for number in range(N_EVENTS + 5):
        log.record(number, 0, [drop(number)])
    events = log.status()["events"]
    assert (len(events), events[0]["sequence"]) == (N_EVENTS, 5)
    events[0]["kind"] = "changed"
    assert log.status()["events"][0]["kind"] == "coil_drop"
