# SPDX-License-Identifier: Apache-2.0
"""Storage commitment we asked for: every order of events, the clock a parameter."""

import pytest

from appliance.buffer import Buffer, NewInstance
from appliance.buffer.commitments import Commitments, Reported

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
HOUR_S = 3600.0


@pytest.fixture
def buffer(tmp_path):
    opened = Buffer(tmp_path)
    yield opened
    opened.close()


def send(buffer, now, must_commit=True):
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", now), now, must_commit=must_commit)


@pytest.fixture
def sent(buffer):
    """Two instances that the PACS said it took; gives the commitments."""
    for n in range(2):
        buffer.put_instance(NewInstance(b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2)
    return Commitments(buffer.database)


def ask(commitments, transaction="2.25.1", now=10.0, timeout_s=HOUR_S):
    items = commitments.uncommitted("pacs", now - timeout_s)
    if items:
        commitments.begin(transaction, "pacs", items, now)
    return [item.sop_instance_uid for item in items]


def states(buffer):
    return [row[0] for row in buffer.database.query("SELECT state FROM deliveries ORDER BY id")]


def test_what_is_committed_may_be_purged_and_nothing_before(buffer, sent):
    assert buffer.purge(1e9, 0) == 0
    assert ask(sent) == ["1.0", "1.1"]
    assert ask(sent, "2.25.2", 11) == [], "asked for, and not yet too late"
    assert buffer.purge(1e9, 0) == 0
    assert sent.report("2.25.1", {"1.0", "1.1"}, {}, 12) == Reported(known=True, committed=2)
    assert states(buffer) == ["committed", "committed"]
    assert buffer.purge(1e9, 0) == 2
    assert buffer.first_broken_audit_row() is None


def test_without_the_requirement_sent_is_enough(buffer):
    buffer.put_instance(NewInstance(b"x", CT, "1.1", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2, must_commit=False)
    assert Commitments(buffer.database).uncommitted("pacs", 0) == []
    assert buffer.purge(1e9, 0) == 1


def test_a_failed_one_is_sent_again_and_then_people_look(buffer, sent):
    for n in range(3):
        assert ask(sent, f"2.25.{n}", 10 + n) != []
        reported = sent.report(f"2.25.{n}", {"1.0"}, {"1.1": 0x0112}, 10 + n)
        assert (reported.sent_again, reported.quarantined) == ((1, 0) if n < 2 else (0, 1))
        assert states(buffer) == ["committed", "queued" if n < 2 else "quarantined"]
        send(buffer, 10 + n)
    assert buffer.purge(1e9, 0) == 1
    (row,) = buffer.database.query("SELECT last_error FROM deliveries WHERE state = 'quarantined'")
    assert row[0] == "not committed after it was sent, reason 0x0112, time 3"


def test_partial_reports_and_late_ones_count(buffer, sent):
    ask(sent, "2.25.1", 10)
    assert sent.report("2.25.1", {"1.0"}, {}, 11).committed == 1
    assert ask(sent, "2.25.2", 12) == []
    assert ask(sent, "2.25.2", 10 + 2 * HOUR_S) == ["1.1"], "never reported, so asked again"
    assert sent.report("2.25.1", {"1.1"}, {}, 20 + 2 * HOUR_S).committed == 1, "the first comes late"
    assert sent.report("2.25.2", {"1.1"}, {}, 30 + 2 * HOUR_S) == Reported(known=True), "the second changes nothing"
    assert states(buffer) == ["committed", "committed"]


def test_a_report_twice_or_of_nobody_changes_nothing(buffer, sent):
    ask(sent)
    sent.report("2.25.1", {"1.0", "1.1"}, {}, 11)
    assert sent.report("2.25.1", set(), {"1.0": 0x0112}, 12) == Reported(known=True)
    assert sent.report("2.25.99", {"1.0"}, {}, 12) == Reported(known=False)
    assert sent.report("2.25.1", {"9.9"}, {"8.8": 1}, 12) == Reported(known=True)
    assert states(buffer) == ["committed", "committed"]


def test_a_refused_request_is_asked_again_at_once(buffer, sent):
    ask(sent)
    sent.refused("2.25.1", 11)
    assert ask(sent, "2.25.2", 12) == ["1.0", "1.1"]


def test_a_report_for_what_is_being_sent_again_waits_for_it(buffer, sent):
    ask(sent)
    sent.report("2.25.1", set(), {"1.0": 0x0110}, 11)
    assert states(buffer) == ["queued", "sent"]
    assert sent.report("2.25.1", {"1.0"}, {}, 12) == Reported(known=True)
    assert states(buffer) == ["queued", "sent"]


def test_a_restart_between_any_two_steps_loses_nothing(tmp_path, sent, buffer):
    ask(sent)
    again = Buffer(tmp_path)
    commitments = Commitments(again.database)
    assert ask(commitments, "2.25.2", 11) == []
    assert commitments.report("2.25.1", {"1.0", "1.1"}, {}, 12).committed == 2
    again.close()
    assert states(buffer) == ["committed", "committed"]
