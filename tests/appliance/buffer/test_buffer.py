# SPDX-License-Identifier: Apache-2.0
"""The buffer's contract: durable, idempotent, nothing owed is ever evicted, time is a parameter."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.buffer import Buffer, NewInstance, NewJob, ObjectError
from appliance.errors import StorageError

HOUR_S = 3600.0


def instance(uid="1.2.3", data=b"bytes", to=("pacs",), **more):
    return NewInstance(data, "1.2.840.10008.5.1.4.1.1.4", uid, "1.2.840.10008.1.2", destinations=to, **more)


def object_files(data_dir: Path, folder="objects"):
    return sorted(p.name for p in (data_dir / folder).rglob("*") if p.is_file())


@pytest.fixture
def buffer(tmp_path):
    opened = Buffer(tmp_path)
    yield opened
    opened.close()


def test_a_job_is_claimed_once_priority_first_then_in_order(buffer):
    buffer.put_jobs([NewJob("build", {"n": 1}, b"a"), NewJob("build", {"n": 2}, b"b")], 10)
    buffer.put_jobs([NewJob("build", {"n": 3}, b"c", priority=9), NewJob("other", {"n": 4}, b"d")], 11)
    claimed = [buffer.next_job("build", 12) for _ in range(4)]
    assert [job.meta["n"] for job in claimed[:3]] == [3, 1, 2]
    assert claimed[3] is None
    assert buffer.read_job(claimed[1]) == b"a"


def test_finishing_a_job_replaces_it_by_instances_and_what_is_owed(buffer, tmp_path):
    buffer.put_jobs([NewJob("build", {}, b"raw")], 10)
    job = buffer.next_job("build", 10)
    kept = buffer.finish_job(job, [instance("1.1"), instance("1.2", b"other", to=("pacs", "archive"))], 11)
    assert [k.new for k in kept] == [True, True]
    counts = buffer.counts()
    assert (counts["produced"], counts["queued"], counts["jobs"]) == (2, 3, 0)
    assert counts["destinations"]["archive"]["queued"] == 1
    assert object_files(tmp_path, "spool") == []
    with pytest.raises(ValueError, match="is not running"):
        buffer.finish_job(job, [], 12)


def test_two_jobs_of_the_same_bytes_do_not_share_their_fate(buffer):
    buffer.put_jobs([NewJob("build", {}, b"black"), NewJob("build", {}, b"black")], 10)
    buffer.finish_job(buffer.next_job("build", 10), [], 10)
    assert buffer.read_job(buffer.next_job("build", 10)) == b"black"


def test_a_job_waits_for_its_next_try_and_keeps_its_count(buffer):
    buffer.put_jobs([NewJob("build", {}, b"raw")], 10)
    buffer.retry_job(buffer.next_job("build", 10), 15, "disk")
    assert buffer.next_job("build", 14.9) is None
    assert buffer.next_job("build", 15).attempts == 1


def test_a_clock_that_was_set_back_delays_nothing(buffer):
    buffer.put_jobs([NewJob("build", {}, b"raw")], 5000)
    assert buffer.next_job("build", 1400) is not None
    buffer.put_instance(instance(), 5000)
    (delivery,) = buffer.claim("pacs", 1400)
    buffer.retry_later(delivery, 5060, "time-out", 5000)
    assert len(buffer.claim("pacs", 1400)) == 1


def test_a_quarantined_job_keeps_its_bytes(buffer, tmp_path):
    buffer.put_jobs([NewJob("build", {}, b"raw")], 10)
    buffer.quarantine_job(buffer.next_job("build", 10), "cannot be built", 11)
    assert buffer.next_job("build", 99) is None
    assert buffer.counts()["jobs_quarantined"] == 1
    buffer.recover(11 + 2e9)
    assert len(object_files(tmp_path, "spool")) == 1


def test_same_uid_and_same_bytes_is_one_copy_owed_once(buffer, tmp_path):
    first, second = buffer.put_instance(instance(), 1), buffer.put_instance(instance(), 2)
    assert (first.new, second.new, second.conflict) == (True, False, False)
    assert first.instance_id == second.instance_id
    assert buffer.counts()["queued"] == 1
    assert len(object_files(tmp_path)) == 1


def test_same_uid_and_other_bytes_keeps_both_and_holds_the_second(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    assert buffer.put_instance(instance(data=b"other"), 2).conflict
    counts = buffer.counts()
    assert (counts["conflicts"], counts["queued"], counts["held"], counts["produced"]) == (1, 1, 1, 2)
    assert len(object_files(tmp_path)) == 2
    assert [d.n_bytes for d in buffer.claim("pacs", 3)] == [5]


def test_claim_takes_priority_then_age_and_only_what_is_due(buffer):
    for uid, priority in (("1.1", 5), ("1.2", 5), ("1.3", 9)):
        buffer.put_instance(instance(uid, uid.encode(), priority=priority), 1)
    assert [d.sop_instance_uid for d in buffer.claim("pacs", 1, limit=2)] == ["1.3", "1.1"]
    assert buffer.claim("archive", 1) == []
    (late,) = buffer.claim("pacs", 1)
    buffer.retry_later(late, 50, "0xA700", 2)
    assert buffer.claim("pacs", 49) == []
    assert [(d.sop_instance_uid, d.attempts) for d in buffer.claim("pacs", 50)] == [("1.2", 1)]


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (lambda b, d: None, "queued"),  # was in sending: nobody knows whether it arrived, so again
        (lambda b, d: b.mark_sent([d], 2), "sent"),
        (lambda b, d: b.retry_later(d, 9, "time-out", 2), "queued"),
        (lambda b, d: b.quarantine(d, "0xC000", 2), "quarantined"),
        (lambda b, d: b.release("pacs", 2), "queued"),
    ],
)
def test_restart_in_every_state(tmp_path, act, state):
    first = Buffer(tmp_path)
    first.put_instance(instance(), 1)
    act(first, first.claim("pacs", 1)[0])
    first.close()
    second = Buffer(tmp_path)
    second.recover(3)
    counts = second.counts()
    assert {name: counts[name] for name in ("queued", "sending", "sent", "quarantined") if counts[name]} == {state: 1}
    assert len(second.claim("pacs", 10)) == (state == "queued")
    second.close()


def test_opening_does_not_take_back_what_another_process_is_sending(tmp_path):
    deliverer = Buffer(tmp_path)
    deliverer.put_instance(instance(), 1)
    deliverer.claim("pacs", 1)
    console = Buffer(tmp_path)
    assert console.counts()["sending"] == 1
    assert console.claim("pacs", 2) == []
    deliverer.close()
    console.close()


WRITER = """
import sys
from pathlib import Path
from appliance.buffer import Buffer, NewJob
buffer = Buffer(Path(sys.argv[1]))
for n in range(60):
    buffer.put_jobs([NewJob("build", {"n": n}, b"%d" % n)], 1)
"""


def test_one_process_writes_while_another_takes(buffer, tmp_path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    taken = []
    while len(taken) < 60:
        job = buffer.next_job("build", 2)
        if job is None:
            assert writer.poll() in (None, 0)
            continue
        assert buffer.read_job(job) == b"%d" % job.meta["n"]
        buffer.finish_job(job, [instance(f"1.{job.meta['n']}", b"%d" % job.meta["n"])], 2)
        taken.append(job.meta["n"])
    assert writer.wait(30) == 0
    assert taken == list(range(60))
    assert buffer.counts()["produced"] == 60


def test_a_running_job_is_queued_again_by_recover(tmp_path):
    first = Buffer(tmp_path)
    first.put_jobs([NewJob("build", {"n": 1}, b"raw")], 1)
    first.next_job("build", 1)
    first.close()
    second = Buffer(tmp_path)
    assert second.next_job("build", 2) is None
    second.recover(2)
    assert second.next_job("build", 2).meta == {"n": 1}
    second.release_jobs("other")
    assert second.next_job("build", 2) is None
    second.release_jobs("build")
    assert second.next_job("build", 2).meta == {"n": 1}
    second.close()


def test_below_the_reserve_intake_is_refused_and_deliveries_go_on(tmp_path, monkeypatch):
    buffer = Buffer(tmp_path, reserve_bytes=2_000_000_000)
    monkeypatch.setattr(buffer._objects, "free_bytes", lambda: 2_000_001_000)
    buffer.put_instance(instance(), 1)
    buffer.put_jobs([NewJob("build", {}, b"raw")], 1)
    monkeypatch.setattr(buffer._objects, "free_bytes", lambda: 1_900_000_000)
    wanted = "1.9 GB are free, 2.0 GB are reserved, 5 bytes refused; free the disk or let deliveries finish"
    with pytest.raises(StorageError, match=wanted):
        buffer.put_instance(instance("1.9"), 2)
    with pytest.raises(StorageError, match="reserved"):
        buffer.put_jobs([NewJob("build", {}, b"raw")], 2)
    buffer.finish_job(buffer.next_job("build", 2), [instance("1.5", b"built")], 2)
    sent = buffer.claim("pacs", 2)
    buffer.mark_sent(sent, 2)
    assert buffer.counts()["sent"] == 2
    buffer.close()


@pytest.mark.parametrize("owed", ["queued", "sending", "held", "quarantined"])
def test_purge_never_takes_what_is_owed_anywhere(buffer, tmp_path, owed):
    if owed == "held":
        buffer.put_instance(instance(data=b"older", to=()), 1)
    buffer.put_instance(instance(to=("archive", "pacs")), 1)
    if owed != "held":
        buffer.mark_sent(buffer.claim("archive", 1), 1)
    if owed == "sending":
        buffer.claim("pacs", 1)
    if owed == "quarantined":
        buffer.quarantine(buffer.claim("pacs", 1)[0], "0xC000", 1)
    before = object_files(tmp_path)
    assert buffer.purge(1e9, 0) == 0
    assert object_files(tmp_path) == before


def test_purge_takes_delivered_bytes_after_the_time_and_keeps_the_record(buffer, tmp_path):
    buffer.put_instance(instance(to=("archive", "pacs")), 1)
    buffer.mark_sent(buffer.claim("archive", 1), 1)
    buffer.mark_sent(buffer.claim("pacs", 2 * HOUR_S), 2 * HOUR_S)
    assert buffer.purge(25 * HOUR_S, 24 * HOUR_S) == 0
    assert buffer.purge(26 * HOUR_S, 24 * HOUR_S) == 1
    assert object_files(tmp_path) == []
    assert buffer.purge(99 * HOUR_S, 24 * HOUR_S) == 0
    counts = buffer.counts()
    assert (counts["produced"], counts["sent"]) == (1, 2)


def test_purge_keeps_bytes_that_another_instance_shares(buffer, tmp_path):
    buffer.put_instance(instance("1.1", b"same"), 1)
    buffer.mark_sent(buffer.claim("pacs", 1), 1)
    buffer.put_instance(instance("1.2", b"same"), 2)
    assert buffer.purge(99, 0) == 1
    assert buffer.read_instance(buffer.claim("pacs", 99)[0]) == b"same"


def test_received_instances_that_nobody_is_owed_stay(buffer, tmp_path):
    buffer.put_instance(instance(to=(), origin="received", peer="SCANNER"), 1)
    assert buffer.purge(1e9, 0) == 0
    assert buffer.counts()["received"] == 1


def test_altered_or_missing_bytes_are_noticed(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    (delivery,) = buffer.claim("pacs", 1)
    path = tmp_path / "objects" / delivery.digest
    path.write_bytes(b"bytez")
    with pytest.raises(ObjectError, match="was altered on the disk; check the disk"):
        buffer.read_instance(delivery)
    path.unlink()
    with pytest.raises(ObjectError, match="cannot be read"):
        buffer.read_instance(delivery)


def test_a_uid_never_becomes_a_path(buffer, tmp_path):
    buffer.put_instance(instance("../../../evil"), 1)
    assert all(len(name) == 64 for name in object_files(tmp_path))
    assert not list(tmp_path.parent.glob("evil*"))


def test_audit_rows_cannot_be_changed_and_a_forged_one_is_found(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    buffer.record("scan end", "scan-1", "complete", 2)
    buffer.mark_sent(buffer.claim("pacs", 3), 3)
    assert buffer.first_broken_audit_row() is None
    intruder = sqlite3.connect(tmp_path / "nearscan.sqlite")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        intruder.execute("UPDATE audit SET detail = 'aborted' WHERE id = 2")
    intruder.execute("DROP TRIGGER audit_no_update")
    intruder.execute("UPDATE audit SET detail = 'aborted' WHERE id = 2")
    intruder.commit()
    intruder.close()
    assert buffer.first_broken_audit_row() == 2


def test_the_database_is_durable_and_private(buffer, tmp_path):
    assert buffer._query("PRAGMA journal_mode") == [("wal",)]
    assert buffer._query("PRAGMA synchronous") == [(2,)]
    assert (tmp_path / "nearscan.sqlite").stat().st_mode & 0o007 == 0
    assert (tmp_path / "nearscan.sqlite-wal").stat().st_mode & 0o007 == 0


def test_a_newer_database_is_refused(tmp_path):
    Buffer(tmp_path).close()
    conn = sqlite3.connect(tmp_path / "nearscan.sqlite")
    conn.execute("PRAGMA user_version = 99")
    conn.close()
    with pytest.raises(StorageError, match="has version 99, this program knows 1; update nearscan"):
        Buffer(tmp_path)


def test_a_database_that_is_none_is_refused(tmp_path):
    (tmp_path / "nearscan.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"cannot open .*; check site.data_dir and its disk"):
        Buffer(tmp_path)


def test_recover_sweeps_what_a_killed_writer_left(buffer, tmp_path):
    (tmp_path / "objects" / "temp" / "1-1").write_bytes(b"half")
    (tmp_path / "spool" / ("f" * 64)).write_bytes(b"job that was never acknowledged")
    buffer.put_jobs([NewJob("build", {}, b"raw")], 1)
    buffer.recover(0)
    assert len(object_files(tmp_path, "spool")) == 2
    buffer.recover(1e11)
    assert object_files(tmp_path) == []
    assert buffer.read_job(buffer.next_job("build", 1)) == b"raw"


def test_identity_in_a_job_is_in_no_repr(buffer):
    job = NewJob("build", {"patient_name": "Doe^Jane"}, b"raw")
    buffer.put_jobs([job], 1)
    assert "Doe" not in repr(job) + repr(buffer.next_job("build", 1)) + repr(buffer.counts())
