# SPDX-License-Identifier: Apache-2.0
"""The buffer's contract: durable, idempotent, nothing owed is ever evicted, time is a parameter."""

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from appliance.buffer import Buffer, NewInstance, NewJob, ObjectError
from appliance.buffer.rebuild import rebuild
from appliance.buffer.segments import Segments
from appliance.errors import StorageError

HOUR_S = 3600.0


def instance(uid="1.2.3", data=b"bytes", to=("pacs",), **more):
    return NewInstance(data, "1.2.840.10008.5.1.4.1.1.4", uid, "1.2.840.10008.1.2", destinations=to, **more)


def kept_bytes(data_dir: Path, record="instance"):
    """What the segments themselves still hold, by an opening of our own."""
    segments = Segments(data_dir / "segments")
    records = [one for name in segments.names() for one in segments.records(name)]
    return sorted(bytes(segments.read(one.place, one.digest)) for one in records if one.meta.get("record") == record)


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
    assert kept_bytes(tmp_path, "job") == []
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
    (delivery,) = buffer.outbox.claim("pacs", 1400)
    buffer.outbox.retry_later(delivery, 5060, "time-out", 5000)
    assert len(buffer.outbox.claim("pacs", 1400)) == 1


def test_a_quarantined_job_keeps_its_bytes(buffer, tmp_path):
    buffer.put_jobs([NewJob("build", {}, b"raw")], 10)
    buffer.quarantine_job(buffer.next_job("build", 10), "cannot be built", 11)
    assert buffer.next_job("build", 99) is None
    assert buffer.counts()["jobs_quarantined"] == 1
    buffer.recover(11 + 2e9)
    assert kept_bytes(tmp_path, "job") == [b"raw"]


def test_same_uid_and_same_bytes_is_one_copy_owed_once(buffer, tmp_path):
    first, second = buffer.put_instance(instance(), 1), buffer.put_instance(instance(), 2)
    assert (first.new, second.new, second.conflict) == (True, False, False)
    assert first.instance_id == second.instance_id
    assert buffer.counts()["queued"] == 1
    assert [buffer.read_instance(one) for one in buffer.outbox.claim("pacs", 3)] == [b"bytes"]


def test_same_uid_and_other_bytes_keeps_both_and_holds_the_second(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    assert buffer.put_instance(instance(data=b"other"), 2).conflict
    counts = buffer.counts()
    assert (counts["conflicts"], counts["queued"], counts["held"], counts["produced"]) == (1, 1, 1, 2)
    assert kept_bytes(tmp_path) == [b"bytes", b"other"]
    assert [d.n_bytes for d in buffer.outbox.claim("pacs", 3)] == [5]


def test_claim_takes_priority_then_age_and_only_what_is_due(buffer):
    for uid, priority in (("1.1", 5), ("1.2", 5), ("1.3", 9)):
        buffer.put_instance(instance(uid, uid.encode(), priority=priority), 1)
    assert [d.sop_instance_uid for d in buffer.outbox.claim("pacs", 1, limit=2)] == ["1.3", "1.1"]
    assert buffer.outbox.claim("archive", 1) == []
    (late,) = buffer.outbox.claim("pacs", 1)
    buffer.outbox.retry_later(late, 50, "0xA700", 2)
    assert buffer.outbox.claim("pacs", 49) == []
    assert [(d.sop_instance_uid, d.attempts) for d in buffer.outbox.claim("pacs", 50)] == [("1.2", 1)]


@pytest.mark.parametrize(
    ("act", "state"),
    [
        (lambda b, d: None, "queued"),  # was in sending: nobody knows whether it arrived, so again
        (lambda b, d: b.outbox.mark_sent([d], 2), "sent"),
        (lambda b, d: b.outbox.retry_later(d, 9, "time-out", 2), "queued"),
        (lambda b, d: b.outbox.quarantine(d, "0xC000", 2), "quarantined"),
        (lambda b, d: b.outbox.release("pacs", 2), "queued"),
    ],
)
def test_restart_in_every_state(tmp_path, act, state):
    first = Buffer(tmp_path)
    first.put_instance(instance(), 1)
    act(first, first.outbox.claim("pacs", 1)[0])
    first.close()
    second = Buffer(tmp_path)
    second.recover(3)
    counts = second.counts()
    assert {name: counts[name] for name in ("queued", "sending", "sent", "quarantined") if counts[name]} == {state: 1}
    assert len(second.outbox.claim("pacs", 10)) == (state == "queued")
    second.close()


def test_opening_does_not_take_back_what_another_process_is_sending(tmp_path):
    deliverer = Buffer(tmp_path)
    deliverer.put_instance(instance(), 1)
    deliverer.outbox.claim("pacs", 1)
    console = Buffer(tmp_path)
    assert console.counts()["sending"] == 1
    assert console.outbox.claim("pacs", 2) == []
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
    monkeypatch.setattr(buffer.segments, "free_bytes", lambda: 2_000_001_000)
    buffer.put_instance(instance(), 1)
    buffer.put_jobs([NewJob("build", {}, b"raw")], 1)
    monkeypatch.setattr(buffer.segments, "free_bytes", lambda: 1_900_000_000)
    wanted = "1.9 GB are free, 2.0 GB are reserved, 5 bytes refused; free the disk or let deliveries finish"
    with pytest.raises(StorageError, match=wanted):
        buffer.put_instance(instance("1.9"), 2)
    with pytest.raises(StorageError, match="reserved"):
        buffer.put_jobs([NewJob("build", {}, b"raw")], 2)
    buffer.finish_job(buffer.next_job("build", 2), [instance("1.5", b"built")], 2)
    sent = buffer.outbox.claim("pacs", 2)
    buffer.outbox.mark_sent(sent, 2)
    assert buffer.counts()["sent"] == 2
    buffer.close()


@pytest.mark.parametrize("owed", ["queued", "sending", "held", "quarantined"])
def test_purge_never_takes_what_is_owed_anywhere(buffer, tmp_path, owed):
    if owed == "held":
        buffer.put_instance(instance(data=b"older", to=()), 1)
    buffer.put_instance(instance(to=("archive", "pacs")), 1)
    if owed != "held":
        buffer.outbox.mark_sent(buffer.outbox.claim("archive", 1), 1)
    if owed == "sending":
        buffer.outbox.claim("pacs", 1)
    if owed == "quarantined":
        buffer.outbox.quarantine(buffer.outbox.claim("pacs", 1)[0], "0xC000", 1)
    before = kept_bytes(tmp_path)
    assert buffer.purge(1e9, 0) == 0
    assert kept_bytes(tmp_path) == before != []


def test_purge_takes_delivered_bytes_after_the_time_and_keeps_the_record(buffer, tmp_path):
    buffer.put_instance(instance(to=("archive", "pacs")), 1)
    buffer.outbox.mark_sent(buffer.outbox.claim("archive", 1), 1)
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 2 * HOUR_S), 2 * HOUR_S)
    assert buffer.purge(25 * HOUR_S, 24 * HOUR_S) == 0
    assert buffer.purge(26 * HOUR_S, 24 * HOUR_S) == 1
    assert kept_bytes(tmp_path) == []
    assert buffer.purge(99 * HOUR_S, 24 * HOUR_S) == 0
    counts = buffer.counts()
    assert (counts["produced"], counts["sent"]) == (1, 2)


def test_purge_keeps_the_same_bytes_of_another_instance(buffer, tmp_path):
    buffer.put_instance(instance("1.1", b"same"), 1)
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 1), 1)
    buffer.put_instance(instance("1.2", b"same"), 2)
    assert buffer.purge(99, 0) == 1
    assert buffer.read_instance(buffer.outbox.claim("pacs", 99)[0]) == b"same"


def test_purged_bytes_that_come_again_are_kept_again(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 1), 1)
    assert buffer.purge(99, 0) == 1
    assert not buffer.put_instance(instance(to=("pacs", "archive")), 100).new
    assert kept_bytes(tmp_path) == [b"bytes"]
    (delivery,) = buffer.outbox.claim("archive", 100)
    assert buffer.read_instance(delivery) == b"bytes"


def test_a_purged_instance_takes_no_space_and_its_segment_goes_when_nothing_in_it_is_wanted(tmp_path, monkeypatch):
    first = Buffer(tmp_path)
    data = bytes(range(256)) * 4096
    for n in range(4):
        first.put_instance(instance(f"1.{n}", data), 1)
    (segment,) = (tmp_path / "segments").iterdir()
    assert segment.stat().st_blocks * 512 > 4 * len(data)
    first.outbox.mark_sent(first.outbox.claim("pacs", 1, limit=3), 1)
    assert first.purge(99, 0) == 3
    assert segment.stat().st_blocks * 512 < 2 * len(data)
    first.outbox.mark_sent(first.outbox.claim("pacs", 1), 1)
    first.purge(99, 0)
    monkeypatch.setattr("appliance.buffer.segments._NEW_S", -1)
    assert first.purge(99, 0) == 0
    assert segment.exists(), "its writer lives"
    first.close()
    second = Buffer(tmp_path)
    second.purge(99, 0)
    assert not segment.exists()
    assert second.counts()["sent"] == 4
    second.close()


def test_received_instances_that_nobody_is_owed_stay(buffer, tmp_path):
    buffer.put_instance(instance(to=(), origin="received", peer="SCANNER"), 1)
    assert buffer.purge(1e9, 0) == 0
    assert buffer.counts()["received"] == 1


def test_altered_or_missing_bytes_are_noticed(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    (delivery,) = buffer.outbox.claim("pacs", 1)
    (path,) = (tmp_path / "segments").iterdir()
    path.write_bytes(path.read_bytes().replace(b"bytes", b"bytez"))
    with pytest.raises(ObjectError, match="was altered on the disk; check the disk"):
        buffer.read_instance(delivery)
    path.unlink()
    with pytest.raises(ObjectError, match="cannot be read"):
        buffer.read_instance(delivery)


def test_a_uid_never_becomes_a_path(buffer, tmp_path):
    buffer.put_instance(instance("../../../evil"), 1)
    assert {path.suffix for path in (tmp_path / "segments").iterdir()} == {".segment"}
    assert not list(tmp_path.parent.glob("evil*"))


def receive(buffer, uid, data, now=1.0, **more):
    with buffer.writer() as writer:
        writer.write(data[:2])
        writer.write(data[2:])
        writer.commit(instance(uid, b"", origin="received", **more), now)


def test_what_is_received_is_indexed_afterwards_in_order(buffer, tmp_path):
    for n in range(3):
        receive(buffer, f"1.{n}", b"bytes %d" % n, to=("pacs",))
    assert buffer.counts()["received"] == 0
    assert [kept.new for kept in buffer.index()] == [True, True, True]
    assert buffer.index() == []
    deliveries = buffer.outbox.claim("pacs", 1)
    assert [buffer.read_instance(one) for one in deliveries] == [b"bytes 0", b"bytes 1", b"bytes 2"]


def test_what_is_put_at_once_takes_what_waits_for_the_index_with_it(buffer):
    receive(buffer, "1.1", b"first")
    buffer.put_jobs([NewJob("build", {}, b"raw")], 1)
    assert buffer.counts()["received"] == 1
    assert buffer.index() == []


def test_a_writer_that_is_left_keeps_nothing(buffer, tmp_path):
    with buffer.writer() as writer:
        writer.write(b"x" * 100_000)
    receive(buffer, "1.1", b"bytes")
    assert kept_bytes(tmp_path) == [b"bytes"]
    assert (tmp_path / "segments").stat() and len(list((tmp_path / "segments").iterdir())) == 1


def test_writers_at_the_same_time_do_not_meet(buffer, tmp_path):
    with buffer.writer() as one, buffer.writer() as other:
        one.write(b"one")
        other.write(b"oth")
        one.write(b"-1")
        other.write(b"er")
        other.commit(instance("1.2", origin="received"), 1)
        one.commit(instance("1.1", origin="received"), 1)
    buffer.index()
    assert kept_bytes(tmp_path) == [b"one-1", b"other"]


def test_conflict_and_copy_are_told_by_the_index(buffer, tmp_path):
    for data in (b"bytes", b"bytes", b"other"):
        receive(buffer, "1.1", data, to=())
    assert [(kept.new, kept.conflict) for kept in buffer.index()] == [(True, False), (False, False), (True, True)]
    assert kept_bytes(tmp_path) == [b"bytes", b"other"]


def test_what_a_killed_process_had_not_indexed_is_indexed_by_recover(tmp_path):
    first = Buffer(tmp_path)
    receive(first, "1.1", b"acknowledged")
    first.close()
    second = Buffer(tmp_path)
    assert second.counts()["received"] == 0
    second.recover(2)
    second.recover(3)
    assert second.counts()["received"] == 1
    second.close()


def test_the_index_waits_while_the_database_cannot_be_written(buffer, monkeypatch):
    receive(buffer, "1.1", b"bytes")
    with monkeypatch.context() as broken:
        broken.setattr(buffer.segments, "records", lambda *_: (_ for _ in ()).throw(OSError(5, "I/O error")))
        with pytest.raises(StorageError, match="not written"):
            buffer.index()
    assert len(buffer.index()) == 1


def test_rebuild_makes_the_same_buffer_from_the_bytes_alone(tmp_path):
    first = Buffer(tmp_path)
    first.put_jobs([NewJob("build", {"n": 1}, b"raw", priority=7), NewJob("build", {"n": 2}, b"done")], 1)
    first.put_instance(instance("1.1", b"same", priority=9, scan_id="scan-1"), 1)
    first.put_instance(instance("1.1", b"same", to=("archive",)), 2)
    first.put_instance(instance("1.1", b"other"), 3)
    receive(first, "1.2", b"received", peer="SCANNER")
    done = [first.next_job("build", 3), first.next_job("build", 3)]
    first.finish_job(done[1], [instance("1.3", b"built")], 3)
    first.outbox.mark_sent(first.outbox.claim("pacs", 3, limit=1), 3)
    assert first.purge(4, 0) == 0
    first.index()
    columns = "SELECT sop_instance_uid, digest, n_bytes, segment, position, origin, peer, conflict FROM instances"
    before, jobs = first.database.query(columns), first.database.query("SELECT kind, meta, priority FROM jobs")
    first.close()
    (tmp_path / "nearscan.sqlite").write_bytes(b"not a database" * 100)
    assert rebuild(tmp_path, 9) == 4
    second = Buffer(tmp_path)
    assert second.database.query(columns) == before
    assert second.database.query("SELECT kind, meta, priority FROM jobs") == jobs
    counts = second.counts()
    assert (counts["queued"], counts["held"], counts["sent"]) == (4, 1, 0), "owed again rather than never"
    assert list(tmp_path.glob("before-rebuild-9-*"))
    second.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_what_root_rebuilds_belongs_to_the_services_user(tmp_path):
    Buffer(tmp_path).close()
    os.chown(tmp_path, 12345, 12345)
    rebuild(tmp_path, 1)
    owned = list(tmp_path.glob("nearscan*"))
    assert owned and {path.stat().st_uid for path in owned} == {12345}


def test_a_damaged_database_is_told_and_nothing_is_claimed_from_it(tmp_path):
    first = Buffer(tmp_path)
    for n in range(400):
        first.put_instance(instance(f"1.{n}", b"%d" % n), 1)
    first.database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    first.close()
    path = tmp_path / "nearscan.sqlite"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = b"\xff" * (len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    second = Buffer(tmp_path)
    with pytest.raises(StorageError, match="run 'nearscan buffer rebuild'"):
        second.recover(2)
    second.close()
    assert rebuild(tmp_path, 3) == 400


def test_audit_rows_cannot_be_changed_and_a_forged_one_is_found(buffer, tmp_path):
    buffer.put_instance(instance(), 1)
    buffer.record("scan end", "scan-1", "complete", 2)
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 3), 3)
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
    assert buffer.database.query("PRAGMA journal_mode") == [("wal",)]
    assert buffer.database.query("PRAGMA synchronous") == [(2,)]
    assert (tmp_path / "nearscan.sqlite").stat().st_mode & 0o007 == 0
    assert (tmp_path / "nearscan.sqlite-wal").stat().st_mode & 0o007 == 0


def test_a_newer_database_is_refused(tmp_path):
    Buffer(tmp_path).close()
    conn = sqlite3.connect(tmp_path / "nearscan.sqlite")
    conn.execute("PRAGMA user_version = 99")
    conn.close()
    with pytest.raises(StorageError, match="has version 99, this program knows 4; update nearscan"):
        Buffer(tmp_path)


def test_a_database_of_before_the_newest_tables_gets_them_and_keeps_what_it_has(tmp_path):
    old = Buffer(tmp_path)
    old.put_instance(instance(), 10)
    old.close()
    conn = sqlite3.connect(tmp_path / "nearscan.sqlite")
    conn.execute("DROP TABLE drift")
    conn.execute("PRAGMA user_version = 2")
    conn.commit()
    conn.close()
    buffer = Buffer(tmp_path)
    assert buffer.database.query("SELECT count(*) FROM drift") == [(0,)]
    assert buffer.database.query("PRAGMA user_version") == [(4,)]
    assert buffer.counts()["produced"] == 1
    buffer.close()


def test_a_database_that_is_none_is_refused(tmp_path):
    (tmp_path / "nearscan.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"cannot open .*; check site.data_dir and its disk"):
        Buffer(tmp_path)


def test_identity_in_a_job_is_in_no_repr(buffer):
    job = NewJob("build", {"patient_name": "Doe^Jane"}, b"raw")
    buffer.put_jobs([job], 1)
    assert "Doe" not in repr(job) + repr(buffer.next_job("build", 1)) + repr(buffer.counts())


def test_index_returns_when_everything_is_indexed_also_by_another_thread(buffer, monkeypatch):
    """Storage commitment asks right after it: it must not say "not here" of what another thread is indexing."""
    with buffer.writer() as writer:
        writer.write(b"bytes")
        writer.commit(instance(data=b""), 10)
    real, under_way, go_on, seen = buffer._index_segment, threading.Event(), threading.Event(), []

    def slow(name, end):
        under_way.set()
        assert go_on.wait(20)
        return real(name, end)

    def ask():
        buffer.index()
        seen.append(buffer.counts()["produced"])
        go_on.set()

    monkeypatch.setattr(buffer, "_index_segment", slow)
    threads = [threading.Thread(target=buffer.index), threading.Thread(target=ask)]
    threads[0].start()
    assert under_way.wait(20)
    threads[1].start()
    go_on.wait(0.2)  # only one that does not wait gets here in the time
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert seen == [1]
