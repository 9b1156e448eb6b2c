# SPDX-License-Identifier: Apache-2.0
"""What must not be lost: instances, what is owed to whom, and work that waits.

Rule: durable on return or StorageError. An instance that is being received costs one fdatasync: its record is all
there is until `index` brings the database up to date, after the acknowledgement; whatever a kill leaves behind is
indexed by the next process that looks. Every transaction is short, because several processes share the file.
`now` is UTC in seconds and always given.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from appliance.buffer import audit, index
from appliance.buffer.database import Database
from appliance.buffer.outbox import STATES, Outbox
from appliance.buffer.records import Delivery, Job, Kept, NewInstance, NewJob
from appliance.buffer.segments import Payload, Place, Record, RecordWriter, Segments
from appliance.errors import StorageError

Rows = list[tuple[Record, Kept | int | None]]  # what was indexed: an instance, the id of a job, or nothing

_PURGE_AT_ONCE = 500
_CHECK_EVERY_BYTES = 16 << 20
_ABANDONED_S = 7 * 86_400.0  # a pipeline that does not end a series within this is no longer there
_WANTED_BY_PIPELINES = (
    "SELECT d.instance_id FROM descriptions d JOIN series s ON s.series_instance_uid = d.series_instance_uid"
    " WHERE d.instance_id = i.id AND (s.state = 'open' OR EXISTS (SELECT 1 FROM pipeline_progress p WHERE"
    " p.series_instance_uid = s.series_instance_uid AND p.state = 'running' AND p.changed_s > ?))"
)
_ROWS_AT_ONCE = 500  # of one transaction while a segment is indexed


class InstanceWriter:
    """One instance on its way in, as it arrives; a context manager. Without `commit` nothing is kept."""

    def __init__(self, buffer: Buffer, writer: RecordWriter) -> None:
        self._buffer, self._writer = buffer, writer
        self._unchecked = 0

    def __enter__(self) -> InstanceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: Payload) -> None:
        """Append to its bytes. Raises StorageError, also when the disk is down to its reserve."""
        self._unchecked += memoryview(data).nbytes
        if self._unchecked > _CHECK_EVERY_BYTES:
            self._unchecked = 0
            self._buffer.check_reserve(0)
        self._writer.write(data)

    def commit(self, instance: NewInstance, now: float) -> None:
        """Keep what was written: durable on return, for one fdatasync. Raises StorageError."""
        self._buffer.note(self._writer.commit(index.meta_of_instance(instance, now)))

    def close(self) -> None:
        """Keep nothing, unless it is committed. Again is no error."""
        self._writer.close()


class Buffer:
    """One open buffer. Thread-safe; any number of processes may have the same folder open."""

    def __init__(self, data_dir: Path, reserve_bytes: int = 0) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
            self.segments = Segments(data_dir / "segments")
        except OSError as error:
            raise StorageError(f"buffer: cannot use {data_dir}: {error.strerror}; check site.data_dir") from error
        self.database = Database(data_dir / "nearscan.sqlite")
        self.outbox = Outbox(self.database)
        self._reserve_bytes = reserve_bytes
        self._lock, self._indexing = threading.Lock(), threading.Lock()
        self._unindexed: dict[str, int] = {}  # by segment of ours: where its newest durable record ends

    def close(self) -> None:
        """Close the database and every segment."""
        self.database.close()
        self.segments.close()

    def free_bytes(self) -> int:
        """Space left on the buffer's disk."""
        try:
            return self.segments.free_bytes()
        except OSError as error:
            raise StorageError(f"buffer: not there: {error.strerror}; check the disk of site.data_dir") from error

    def check_reserve(self, n_bytes: int) -> None:
        """Raises StorageError where `n_bytes` more would use the reserve."""
        free = self.free_bytes()
        if free - n_bytes < self._reserve_bytes:
            raise StorageError(
                f"buffer: {free / 1e9:.1f} GB are free, {self._reserve_bytes / 1e9:.1f} GB are reserved, "
                f"{n_bytes} bytes refused; free the disk or let deliveries finish"
            )

    # Instances

    def writer(self) -> InstanceWriter:
        """Give a writer for one instance. Raises StorageError, also when the disk is down to its reserve."""
        self.check_reserve(0)
        return InstanceWriter(self, self.segments.writer())

    def put_instance(self, instance: NewInstance, now: float) -> Kept:
        """Keep one instance that is whole, and index it. Raises StorageError as `writer` does."""
        self.check_reserve(memoryview(instance.data).nbytes)
        with self.segments.writer() as writer:
            records = _write(writer, [(instance.data, index.meta_of_instance(instance, now))])
            with self.database.transaction() as conn:
                rows = self._index_up_to(conn, records[-1])
        (kept,) = self._kept(records, rows)
        return kept

    def read_instance(self, delivery: Delivery) -> bytearray:
        """Give the Part 10 bytes. Raises ObjectError when they are gone or altered."""
        return self.segments.read(delivery.place, delivery.digest)

    # The index

    def note(self, record: Record) -> None:
        """Have `index` take this record, and what is before it in its segment."""
        with self._lock:
            self._unindexed[record.place.segment] = record.end

    def index(self) -> list[Kept]:
        """Bring the database up to date with what writers of this process kept, also where another thread is at it.
        Raises StorageError; then again."""
        with self._indexing:
            return self._index()

    def _index(self) -> list[Kept]:
        with self._lock:
            waiting, self._unindexed = self._unindexed, {}
        kept: list[Kept] = []
        while waiting:
            name, end = waiting.popitem()
            try:
                kept += self._index_segment(name, end)
            except StorageError:
                with self._lock:
                    self._unindexed = {**waiting, name: end, **self._unindexed}
                raise
        return kept

    def index_left_behind(self) -> list[Kept]:
        """Index what processes that are gone kept and did not index."""
        kept: list[Kept] = []
        for name in self.segments.names():
            if not self.segments.is_written_to(name):
                kept += self._index_segment(name, None)
        return kept

    def _index_segment(self, name: str, end: int | None) -> list[Kept]:
        kept: list[Kept] = []
        while True:
            with self.database.transaction() as conn:
                rows = self._index_batch(conn, name, end, _ROWS_AT_ONCE)
            if not rows:
                return kept
            kept += self._kept([record for record, _ in rows], rows)

    def _index_batch(self, conn: sqlite3.Connection, name: str, end: int | None, limit: int) -> Rows:
        """Insert up to `limit` records that the database does not know; where there are none, nothing is behind."""
        known = index.indexed(conn, name)
        last = self.segments.size(name) if end is None else end
        rows = [
            (record, index.insert(conn, record)) for record in islice(self.segments.records(name, known, last), limit)
        ]
        reached = rows[-1][0].end if rows else last
        if reached > known:
            index.set_indexed(conn, name, reached)
        return rows

    def _index_up_to(self, conn: sqlite3.Connection, record: Record) -> Rows:
        return self._index_batch(conn, record.place.segment, record.end, sys.maxsize)

    def _kept(self, records: Sequence[Record], rows: Rows) -> list[Kept]:
        """Give what became of `records`, those of instances, after the commit.

        A copy gives its space back, unless it says that somebody is owed it: a rebuild must find that.
        """
        by_place = {record.place: kept for record, kept in rows if isinstance(kept, Kept)}
        for record, kept in rows:
            copy = isinstance(kept, Kept) and not kept.new and not record.meta["destinations"]
            if copy and not index.holds(self.database, record.place):
                self.segments.purge(record.place)
        return [by_place[record.place] for record in records if record.place in by_place]

    # Jobs

    def put_jobs(self, jobs: Sequence[NewJob], now: float) -> list[int]:
        """Keep `jobs`. Raises StorageError, also when the disk is down to its reserve; keeping them again is safe."""
        self.check_reserve(sum(memoryview(job.payload).nbytes for job in jobs))
        with self.segments.writer() as writer:
            records = _write(writer, [(job.payload, index.meta_of_job(job, now)) for job in jobs])
            with self.database.transaction() as conn:
                rows = self._index_up_to(conn, records[-1])
        places = {record.place for record in records}
        return [row for record, row in rows if record.place in places and isinstance(row, int)]

    def next_job(self, kind: str, now: float) -> Job | None:
        """Claim the next job of `kind` that is due; None: nothing to do."""
        with self.database.transaction() as conn:
            row = conn.execute(
                "SELECT id, kind, meta, digest, segment, position, priority, attempts, created_s FROM jobs"
                " WHERE state = 'queued' AND kind = ?"
                " AND (next_try_s <= ? OR created_s > ?) ORDER BY priority DESC, id LIMIT 1",
                (kind, now, now),
            ).fetchone()
            if row is None:
                return None
            conn.execute("UPDATE jobs SET state = 'running' WHERE id = ?", (row[0],))
        return Job(row[0], row[1], json.loads(row[2]), row[3], Place(row[4], row[5]), *row[6:])

    def read_job(self, job: Job) -> bytearray:
        """Give the job's bytes. Raises ObjectError when they are gone or altered."""
        return self.segments.read(job.place, job.digest)

    def finish_job(self, job: Job, instances: Sequence[NewInstance], now: float) -> list[Kept]:
        """Replace the job by its `instances` and what is owed, all or nothing.

        May use the reserve: the job's own bytes are freed, and deliveries must go on.
        """
        with self.segments.writer() as writer:
            records = _write(writer, [(one.data, index.meta_of_instance(one, now)) for one in instances])
            with self.database.transaction() as conn:
                if conn.execute("DELETE FROM jobs WHERE id = ? AND state = 'running'", (job.job_id,)).rowcount != 1:
                    raise ValueError(f"finish_job: job {job.job_id} is not running; claim it with next_job first")
                rows = self._index_up_to(conn, records[-1]) if records else []
        self.segments.purge(job.place)
        return self._kept(records, rows)

    def release_jobs(self, kind: str) -> None:
        """Queue again what is running of `kind`. Only for the one process that claims it."""
        with self.database.transaction() as conn:
            conn.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running' AND kind = ?", (kind,))

    def retry_job(self, job: Job, next_try: float, error: str) -> None:
        """Put the job back until `next_try`; `error` never holds patient data."""
        with self.database.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts + 1, next_try_s = ?, last_error = ?"
                " WHERE id = ?",
                (next_try, error, job.job_id),
            )

    def quarantine_job(self, job: Job, error: str, now: float) -> None:
        """Keep the job and its bytes for people to look at."""
        with self.database.transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'quarantined', attempts = attempts + 1, last_error = ? WHERE id = ?",
                (error, job.job_id),
            )
            audit.append(conn, now, "job quarantined", str(job.job_id), error)

    # The whole

    def recover(self, now: float) -> None:
        """After a restart: check the database, index what a killed process left, and queue again what was in work.
        Only for the one process that claims. Raises StorageError."""
        self.database.check()
        self.index_left_behind()
        with self.database.transaction() as conn:
            conn.execute("UPDATE deliveries SET state = 'queued', changed_s = ? WHERE state = 'sending'", (now,))
            conn.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")

    def purge(self, now: float, keep_delivered_s: float) -> int:
        """Give back the space of instances delivered everywhere they are owed for `keep_delivered_s`; gives how many.
        What belongs to a series that is open, or that a pipeline is at, stays. The header of a record stays until
        nothing in its segment is wanted any more."""
        with self.database.transaction() as conn:
            rows = conn.execute(
                "SELECT i.id, i.segment, i.position, i.digest FROM instances i"
                " JOIN deliveries d ON d.instance_id = i.id WHERE i.purged_s IS NULL"
                f" AND NOT EXISTS ({_WANTED_BY_PIPELINES}) GROUP BY i.id"
                " HAVING min(d.state = 'committed' OR (d.state = 'verified' AND d.enough <> 'committed')"
                " OR (d.state = 'sent' AND d.enough = 'sent')) = 1"
                " AND max(d.changed_s) <= ? LIMIT ?",
                (now - _ABANDONED_S, now - keep_delivered_s, _PURGE_AT_ONCE),
            ).fetchall()
            for instance_id, _, _, digest in rows:
                conn.execute("UPDATE instances SET purged_s = ? WHERE id = ?", (now, instance_id))
                audit.append(conn, now, "purged", digest)
        for _, segment, position, _ in rows:  # after the commit: no row may promise bytes that are gone
            self.segments.purge(Place(segment, position))
        if not rows:
            self._drop_segments()
        return len(rows)

    def _drop_segments(self) -> None:
        """Delete the segments in which nothing is wanted any more and that nobody writes to."""
        for name in self.segments.names():
            if self.segments.is_written_to(name):
                continue
            self._index_segment(name, None)
            with self.database.transaction() as conn:
                wanted = conn.execute(
                    "SELECT 1 FROM instances WHERE segment = ? AND purged_s IS NULL"
                    " UNION ALL SELECT 1 FROM jobs WHERE segment = ? LIMIT 1",
                    (name, name),
                ).fetchone()
                if wanted is None and self.segments.is_old(name):
                    self.segments.delete(name)
                    conn.execute("DELETE FROM segments WHERE name = ?", (name,))

    def record(self, event: str, subject: str, detail: str, now: float) -> None:
        """Append to the audit chain. Never patient data."""
        with self.database.transaction() as conn:
            audit.append(conn, now, event, subject, detail)

    def first_broken_audit_row(self) -> int | None:
        """Give the first audit row that was altered; None: the chain is whole."""
        return audit.first_broken_row(self.database)

    def counts(self) -> dict[str, Any]:
        """Count everything: plain values for status, console and metrics."""
        query = self.database.query
        rows = query("SELECT destination, state, count(*) FROM deliveries GROUP BY destination, state")
        destinations = {name: dict.fromkeys(STATES, 0) for name in sorted({row[0] for row in rows})}
        for name, state, n in rows:
            destinations[name][state] = n
        jobs = dict(query("SELECT state, count(*) FROM jobs GROUP BY state"))
        origins = dict(query("SELECT origin, count(*) FROM instances GROUP BY origin"))
        conflicts = query("SELECT count(*) FROM instances WHERE conflict = 1")[0][0]
        return {
            "produced": origins.get("produced", 0),
            "received": origins.get("received", 0),
            "conflicts": conflicts,
            "jobs": jobs.get("queued", 0) + jobs.get("running", 0),
            "jobs_quarantined": jobs.get("quarantined", 0),
            **{state: sum(counts[state] for counts in destinations.values()) for state in STATES},
            "destinations": destinations,
        }


def _write(writer: RecordWriter, objects: Sequence[tuple[Payload, dict[str, Any]]]) -> list[Record]:
    """Write all `objects`, durable on return, for one fdatasync."""
    records = []
    for data, meta in objects:
        writer.write(data)
        records.append(writer.finish(meta))
    writer.sync()
    return records
