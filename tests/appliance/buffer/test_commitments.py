# SPDX-License-Identifier: Apache-2.0
"""Storage commitment we asked for: every order of events, the clock a parameter."""

import time
from random import Random

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


def send(buffer, now, enough="committed"):
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", now), now, enough=enough)


@pytest.fixture
def sent(buffer):
    """Two instances that the PACS said it took; gives the commitments."""
    for n in range(2):
        buffer.put_instance(NewInstance(b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2)
    return Commitments(buffer.database)


def ask(commitments, transaction="2.25.1", now=10.0, timeout_s=HOUR_S):
    items = commitments.uncommitted("pacs", now - timeout_s, now)
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
    assert sent.waits("pacs") and not sent.is_reported("2.25.1")
    assert sent.report("2.25.1", {"1.0", "1.1"}, {}, 12) == Reported(known=True, good=2)
    assert not sent.waits("pacs") and sent.is_reported("2.25.1")
    assert states(buffer) == ["committed", "committed"]
    assert buffer.purge(1e9, 0) == 2
    assert buffer.first_broken_audit_row() is None


@pytest.mark.parametrize(
    ("enough", "state", "purged"),
    [
        ("sent", "sent", 1),
        ("verified", "sent", 0),
        ("verified", "verified", 1),
        ("verified", "committed", 1),
        ("committed", "sent", 0),
        ("committed", "verified", 0),
        ("committed", "committed", 1),
    ],
)
def test_only_the_state_that_is_enough_lets_go(buffer, enough, state, purged):
    buffer.put_instance(NewInstance(b"x", CT, "1.1", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2, enough)
    commitments = Commitments(buffer.database)
    assert ask(commitments) == ([] if enough == "sent" else ["1.1"])
    if state != "sent":
        commitments.report("2.25.1", {"1.1"}, {}, 11, state=state)
    assert states(buffer) == [state]
    assert buffer.purge(1e9, 0) == purged


def test_what_is_only_verified_is_asked_again_where_that_is_not_enough(buffer, sent):
    ask(sent)
    sent.report("2.25.1", {"1.0", "1.1"}, {}, 11, state="verified")
    sent.drop("2.25.1")
    assert states(buffer) == ["verified", "verified"]
    assert ask(sent, "2.25.2", 12) == []
    assert ask(sent, "2.25.2", 12 + HOUR_S) == ["1.0", "1.1"]
    assert sent.report("2.25.2", {"1.0"}, {"1.1": 0x0112}, 20 + HOUR_S) == Reported(True, good=1, sent_again=1)
    assert states(buffer) == ["committed", "queued"]


@pytest.mark.parametrize(
    ("before", "after", "asks", "purged"),
    [("committed", "sent", False, 2), ("sent", "committed", True, 0), ("verified", "committed", True, 0)],
)
def test_another_setting_counts_for_what_was_sent_under_the_old_one(buffer, before, after, asks, purged):
    for n in range(2):
        buffer.put_instance(NewInstance(b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2, before)
    buffer.outbox.require("pacs", after)
    buffer.outbox.require("archive", "committed" if after == "sent" else "sent")
    assert bool(ask(Commitments(buffer.database))) == asks
    assert buffer.purge(1e9, 0) == purged


def test_what_is_gone_already_is_never_asked_about(buffer):
    buffer.put_instance(NewInstance(b"x", CT, "1.1", EXPLICIT, destinations=("pacs",)), 1)
    send(buffer, 2, "sent")
    buffer.purge(1e9, 0)
    buffer.outbox.require("pacs", "committed")
    assert ask(Commitments(buffer.database)) == []


def test_a_failed_one_is_sent_again_and_then_people_look(buffer, sent):
    for n in range(3):
        assert ask(sent, f"2.25.{n}", 10 + n) != []
        reported = sent.report(f"2.25.{n}", {"1.0"}, {"1.1": 0x0112}, 10 + n)
        assert (reported.sent_again, reported.quarantined) == ((1, 0) if n < 2 else (0, 1))
        assert states(buffer) == ["committed", "queued" if n < 2 else "quarantined"]
        assert sent.n_quarantined("pacs") == (n == 2)
        send(buffer, 10 + n)
    assert buffer.purge(1e9, 0) == 1
    (row,) = buffer.database.query("SELECT last_error FROM deliveries WHERE state = 'quarantined'")
    assert row[0] == "not committed after it was sent, reason 0x0112, time 3"


def test_partial_reports_and_late_ones_count(buffer, sent):
    ask(sent, "2.25.1", 10)
    assert sent.report("2.25.1", {"1.0"}, {}, 11).good == 1
    assert ask(sent, "2.25.2", 12) == []
    assert ask(sent, "2.25.2", 10 + 2 * HOUR_S) == ["1.1"], "never reported, so asked again"
    assert sent.report("2.25.1", {"1.1"}, {}, 20 + 2 * HOUR_S).good == 1, "the first comes late"
    assert sent.report("2.25.2", {"1.1"}, {}, 30 + 2 * HOUR_S) == Reported(known=True), "the second changes nothing"
    assert states(buffer) == ["committed", "committed"]


def test_a_success_from_before_it_was_sent_again_does_not_count(buffer, sent):
    ask(sent, "2.25.1", 10)
    ask(sent, "2.25.2", 10 + 2 * HOUR_S)
    sent.report("2.25.2", {"1.0"}, {"1.1": 0x0112}, 8000)
    assert sent.report("2.25.1", {"1.1"}, {}, 8001) == Reported(known=True), "while it waits"
    send(buffer, 8002)
    assert states(buffer) == ["committed", "sent"]
    assert sent.report("2.25.1", {"1.1"}, {}, 8003) == Reported(known=True), "after it was sent"
    assert states(buffer) == ["committed", "sent"]
    assert buffer.purge(1e9, 0) == 1
    assert ask(sent, "2.25.3", 8004) == ["1.1"]
    assert sent.report("2.25.3", {"1.1"}, {}, 8005).good == 1


def test_a_report_twice_or_of_nobody_changes_nothing(buffer, sent):
    ask(sent)
    sent.report("2.25.1", {"1.0", "1.1"}, {}, 11)
    assert sent.report("2.25.1", set(), {"1.0": 0x0112}, 12) == Reported(known=True)
    assert sent.report("2.25.99", {"1.0"}, {}, 12) == Reported(known=False)
    assert sent.report("2.25.1", {"9.9"}, {"8.8": 1}, 12) == Reported(known=True)
    assert states(buffer) == ["committed", "committed"]


def test_a_request_without_answer_is_asked_again_at_once_and_its_report_counts(buffer, sent):
    ask(sent)
    sent.ask_again("2.25.1", 11)
    assert ask(sent, "2.25.2", 12) == ["1.0", "1.1"]
    assert sent.report("2.25.1", {"1.0"}, {}, 13).good == 1
    assert sent.report("2.25.2", {"1.0", "1.1"}, {}, 14).good == 1
    assert states(buffer) == ["committed", "committed"]


def test_a_clock_that_was_set_back_delays_nothing(sent):
    ask(sent, now=1e6)
    assert ask(sent, "2.25.2", 100) == ["1.0", "1.1"]


def test_a_report_for_what_is_being_sent_again_waits_for_it(buffer, sent):
    ask(sent)
    sent.report("2.25.1", set(), {"1.0": 0x0110}, 11)
    assert states(buffer) == ["queued", "sent"]
    assert sent.report("2.25.1", {"1.0"}, {}, 12) == Reported(known=True)
    assert states(buffer) == ["queued", "sent"]


def test_what_is_settled_is_forgotten_and_the_rest_stays_small(buffer, sent):
    for n in range(50):
        ask(sent, f"2.25.{n}", 10 + n * HOUR_S)
    assert buffer.database.query("SELECT count(*) FROM commitment_items") == [(20,)], "ten for each of two"
    assert sent.report("2.25.45", {"1.0"}, {}, 1e6).good == 1
    sent.forget(9.0)
    assert buffer.database.query("SELECT count(*) FROM commitments") == [(10,)]
    sent.forget(1e6)
    assert sent.report("2.25.45", {"1.1"}, {}, 1e6).good == 1
    sent.forget(1e6)
    assert buffer.database.query("SELECT count(*) FROM commitments") == [(0,)]
    assert states(buffer) == ["committed", "committed"]


def test_many_that_wait_for_a_report_cost_nothing(buffer):
    with buffer.database.transaction() as conn:
        conn.executemany(
            "INSERT INTO instances (id, sop_class_uid, sop_instance_uid, transfer_syntax_uid, digest, segment,"
            " position, origin, conflict) VALUES (?, ?, ?, ?, ?, 's', 0, 'received', 0)",
            [(n, CT, f"1.{n}", EXPLICIT, str(n)) for n in range(30_000)],
        )
        conn.executemany(
            "INSERT INTO deliveries (instance_id, destination, state, enough, asked_s, priority, attempts, next_try_s,"
            " changed_s) VALUES (?, 'pacs', 'sent', 'committed', 50, 5, 1, 1, 1)",
            [(n,) for n in range(30_000)],
        )
    steps = []
    buffer.database._conn.set_progress_handler(lambda: steps.append(1), 1000)
    start = time.perf_counter()
    assert Commitments(buffer.database).uncommitted("pacs", 40, 60) == []
    print(f"asked what to ask, 30,000 waiting: {(time.perf_counter() - start) * 1e3:.2f} ms")
    assert len(steps) <= 1, "a thousand instructions of SQLite's machine are far fewer than one for each"


EVENTS = ("ask", "ask again", "report all", "report some", "fail", "late", "send", "purge", "restart")


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_in_whatever_order_nothing_goes_before_its_last_sending_is_committed(tmp_path, seed):
    """A PACS that keeps only some of what it takes, and loses some later, but reports what is so: at a purge, all that
    goes is there."""
    random = Random(seed)
    buffer, now = Buffer(tmp_path), 10.0
    at_pacs, reports = set(), []
    for n, event in enumerate(["send", *random.choices(EVENTS, k=60), "purge"]):
        now += HOUR_S * 0.6
        commitments = Commitments(buffer.database)
        if event == "send":
            buffer.put_instance(NewInstance(b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=("pacs",)), now)
            batch = buffer.outbox.claim("pacs", now)
            at_pacs |= {delivery.sop_instance_uid for delivery in batch if random.random() < 0.7}
            buffer.outbox.mark_sent(batch, now, enough="committed")
        elif event == "ask":
            asked = ask(commitments, f"2.25.{n}", now)
            reports.append((f"2.25.{n}", set(asked) & at_pacs, dict.fromkeys(set(asked) - at_pacs, 0x0112)))
        elif event == "ask again" and reports:
            commitments.ask_again(reports[-1][0], now)
        elif event == "fail" and at_pacs:  # it is lost at the PACS, and a report says so
            lost = random.choice(sorted(at_pacs))
            asked = ask(commitments, f"2.25.{n}", now, timeout_s=0)
            row = buffer.database.query(
                "SELECT d.state FROM deliveries d JOIN instances i ON i.id = d.instance_id"
                " WHERE i.sop_instance_uid = ?", (lost,)
            )  # fmt: skip
            if lost in asked and row == [("sent",)]:
                at_pacs.discard(lost)
                commitments.report(f"2.25.{n}", set(asked) & at_pacs, {lost: 0x0112}, now)
        elif event in ("report all", "late", "report some") and reports:
            uid, good, failed = random.choice(reports) if event == "late" else reports[-1]
            good = set(sorted(good)[:1]) if event == "report some" else good
            commitments.report(uid, good, failed, now)
        elif event == "restart":
            buffer.close()
            buffer = Buffer(tmp_path)
            buffer.recover(now)
        elif event == "purge":
            buffer.purge(now + 1e9, 0)
            gone = {row[0] for row in buffer.database.query(
                "SELECT sop_instance_uid FROM instances WHERE purged_s IS NOT NULL"
            )}  # fmt: skip
            assert gone <= at_pacs
    buffer.close()


def test_a_restart_between_any_two_steps_loses_nothing(tmp_path):
    def again():
        opened = Buffer(tmp_path)
        opened.recover(5)
        return opened, Commitments(opened.database)

    buffer, commitments = again()
    for n in range(2):
        buffer.put_instance(NewInstance(b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=("pacs",)), 1)
    steps = [
        lambda: send(buffer, 2),
        lambda: ask(commitments, "2.25.1", 10),
        lambda: commitments.ask_again("2.25.1", 11),
        lambda: ask(commitments, "2.25.2", 12),
        lambda: commitments.report("2.25.1", {"1.0"}, {"1.1": 0x0112}, 13),
        lambda: send(buffer, 14),
        lambda: ask(commitments, "2.25.3", 15),
        lambda: commitments.report("2.25.2", {"1.1"}, {}, 16),
        lambda: commitments.report("2.25.3", {"1.1"}, {}, 17),
    ]
    seen = []
    for step in steps:
        step()
        buffer.close()
        buffer, commitments = again()
        seen.append(states(buffer)[1])
    assert seen == ["sent", "sent", "sent", "sent", "queued", "sent", "sent", "sent", "committed"]
    assert buffer.purge(1e9, 0) == 2
    buffer.close()
