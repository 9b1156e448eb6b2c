# SPDX-License-Identifier: Apache-2.0
"""What must not be lost: instances, what is owed to whom, and work that waits.

Rule: durable on return or StorageError; every transaction is short, because several processes share the file.
`now` is UTC in seconds and always given; a row from the future means that the clock was set back, and is due.
A larger priority goes first, then the older row.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.buffer import audit
from appliance.buffer.objects import ObjectFolder, Payload
from appliance.buffer.records import Delivery, Job, Kept, NewInstance, NewJob
from appliance.buffer.schema import open_database
from appliance.errors import StorageError

STATES = ("queued", "sending", "sent", "committed", "held", "quarantined")
_ABANDONED_S = 3600.0  # a temp file this old belongs to a process that was killed
_PURGE_AT_ONCE = 500


class Buffer:
    """One open buffer. Thread-safe; any number of processes may have the same folder open."""

    def __init__(self, data_dir: Path, reserve_bytes: int = 0) -> None:
        try:
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._objects = ObjectFolder(data_dir / "objects")
            self._spool = ObjectFolder(data_dir / "spool")
        except OSError as error:
            raise StorageError(f"buffer: cannot use {data_dir}: {error.strerror}; check site.data_dir") from error
        self._conn = open_database(data_dir / "nearscan.sqlite")
        self._lock = threading.Lock()
        self._reserve_bytes = reserve_bytes

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._conn.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._conn.execute("BEGIN IMMEDIATE")
                yield self._conn
                self._conn.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise StorageError(f"buffer: not written: {error}; check the disk of site.data_dir") from error
            finally:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")

    def _query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._conn.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"buffer: not readable: {error}; check the disk of site.data_dir") from error

    def free_bytes(self) -> int:
        """Space left on the buffer's disk."""
        try:
            return self._objects.free_bytes()
        except OSError as error:
            raise StorageError(f"buffer: not there: {error.strerror}; check the disk of site.data_dir") from error

    def _check_reserve(self, n_bytes: int) -> None:
        free = self.free_bytes()
        if free - n_bytes < self._reserve_bytes:
            raise StorageError(
                f"buffer: {free / 1e9:.1f} GB are free, {self._reserve_bytes / 1e9:.1f} GB are reserved, "
                f"{n_bytes} bytes refused; free the disk or let deliveries finish"
            )

    @staticmethod
    def _write(folder: ObjectFolder, objects: Sequence[Payload]) -> list[str]:
        try:
            return folder.write(objects)
        except OSError as error:
            raise StorageError(f"buffer: not written: {error.strerror}; check the disk of site.data_dir") from error

    @staticmethod
    def _rewrite_missing(folder: ObjectFolder, objects: Sequence[Payload], digests: Sequence[str]) -> None:
        # Between our write and our transaction another process may have deleted its object of the same content.
        folder.write([data for data, digest in zip(objects, digests, strict=True) if not folder.holds(digest)])

    # Jobs

    def put_jobs(self, jobs: Sequence[NewJob], now: float) -> list[int]:
        """Keep `jobs`, all or none. Raises StorageError, also when the disk is down to its reserve."""
        payloads = [job.payload for job in jobs]
        self._check_reserve(sum(memoryview(payload).nbytes for payload in payloads))
        digests = self._write(self._spool, payloads)
        with self._transaction() as conn:
            self._rewrite_missing(self._spool, payloads, digests)
            return [self._insert_job(conn, job, digest, now) for job, digest in zip(jobs, digests, strict=True)]

    @staticmethod
    def _insert_job(conn: sqlite3.Connection, job: NewJob, digest: str, now: float) -> int:
        row = conn.execute(
            "INSERT INTO jobs (kind, meta, digest, n_bytes, state, priority, attempts, next_try_s, last_error,"
            " created_s) VALUES (?, ?, ?, ?, 'queued', ?, 0, ?, '', ?)",
            (job.kind, json.dumps(job.meta), digest, memoryview(job.payload).nbytes, job.priority, now, now),
        )
        return int(row.lastrowid or 0)

    def next_job(self, kind: str, now: float) -> Job | None:
        """Claim the next job of `kind` that is due; None: nothing to do."""
        with self._transaction() as conn:
            row = conn.execute(
                "SELECT id, kind, meta, digest, priority, attempts, created_s FROM jobs"
                " WHERE state = 'queued' AND kind = ?"
                " AND (next_try_s <= ? OR created_s > ?) ORDER BY priority DESC, id LIMIT 1",
                (kind, now, now),
            ).fetchone()
            if row is None:
                return None
            conn.execute("UPDATE jobs SET state = 'running' WHERE id = ?", (row[0],))
        return Job(row[0], row[1], json.loads(row[2]), *row[3:])

    def read_job(self, job: Job) -> bytes:
        """Give the job's bytes. Raises ObjectError when they are gone or altered."""
        return self._spool.read(job.digest)

    def finish_job(self, job: Job, instances: Sequence[NewInstance], now: float) -> list[Kept]:
        """Replace the job by its `instances` and what is owed, all or nothing.

        May use the reserve: the job's own bytes are freed, and deliveries must go on.
        """
        objects = [instance.data for instance in instances]
        digests = self._write(self._objects, objects)
        with self._transaction() as conn:
            if conn.execute("DELETE FROM jobs WHERE id = ? AND state = 'running'", (job.job_id,)).rowcount != 1:
                raise ValueError(f"finish_job: job {job.job_id} is not running; claim it with next_job first")
            self._rewrite_missing(self._objects, objects, digests)
            kept = [self._insert_instance(conn, *pair, now) for pair in zip(instances, digests, strict=True)]
        self._drop_payload(job.digest)
        return kept

    def _drop_payload(self, digest: str) -> None:
        with self._transaction() as conn:  # after the commit, so that a kill leaves the bytes, not the job without
            if conn.execute("SELECT 1 FROM jobs WHERE digest = ?", (digest,)).fetchone() is None:
                self._spool.delete(digest)

    def release_jobs(self, kind: str) -> None:
        """Queue again what is running of `kind`. Only for the one process that claims it."""
        with self._transaction() as conn:
            conn.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running' AND kind = ?", (kind,))

    def retry_job(self, job: Job, next_try: float, error: str) -> None:
        """Put the job back until `next_try`; `error` never holds patient data."""
        with self._transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'queued', attempts = attempts + 1, next_try_s = ?, last_error = ?"
                " WHERE id = ?",
                (next_try, error, job.job_id),
            )

    def quarantine_job(self, job: Job, error: str, now: float) -> None:
        """Keep the job and its bytes for people to look at."""
        with self._transaction() as conn:
            conn.execute(
                "UPDATE jobs SET state = 'quarantined', attempts = attempts + 1, last_error = ? WHERE id = ?",
                (error, job.job_id),
            )
            audit.append(conn, now, "job quarantined", str(job.job_id), error)

    # Instances

    def put_instance(self, instance: NewInstance, now: float) -> Kept:
        """Keep one instance and what is owed. Raises StorageError, also when the disk is down to its reserve."""
        self._check_reserve(memoryview(instance.data).nbytes)
        digests = self._write(self._objects, [instance.data])
        with self._transaction() as conn:
            self._rewrite_missing(self._objects, [instance.data], digests)
            return self._insert_instance(conn, instance, digests[0], now)

    def _insert_instance(self, conn: sqlite3.Connection, instance: NewInstance, digest: str, now: float) -> Kept:
        same = conn.execute(
            "SELECT id, conflict FROM instances WHERE sop_instance_uid = ? AND digest = ?",
            (instance.sop_instance_uid, digest),
        ).fetchone()
        if same is None:
            kept = self._insert_new_instance(conn, instance, digest, now)
        else:
            conn.execute("UPDATE instances SET purged_s = NULL WHERE id = ?", (same[0],))
            kept = Kept(same[0], new=False, conflict=bool(same[1]))
        conn.executemany(
            "INSERT OR IGNORE INTO deliveries (instance_id, destination, state, priority, attempts, next_try_s,"
            " last_error, created_s, changed_s) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?)",
            [self._delivery_row(kept, name, instance.priority, now) for name in instance.destinations],
        )
        return kept

    @staticmethod
    def _delivery_row(kept: Kept, destination: str, priority: int, now: float) -> tuple[Any, ...]:
        state = "held" if kept.conflict else "queued"
        reason = "another instance has the same UID and other bytes" if kept.conflict else ""
        return kept.instance_id, destination, state, priority, now, reason, now, now

    @staticmethod
    def _insert_new_instance(conn: sqlite3.Connection, instance: NewInstance, digest: str, now: float) -> Kept:
        uid = instance.sop_instance_uid
        conflict = conn.execute("SELECT 1 FROM instances WHERE sop_instance_uid = ?", (uid,)).fetchone() is not None
        row = conn.execute(
            "INSERT INTO instances (sop_class_uid, sop_instance_uid, transfer_syntax_uid, digest, n_bytes, origin,"
            " peer, conflict, created_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(instance.sop_class_uid, uid, instance.transfer_syntax_uid, digest, memoryview(instance.data).nbytes),
                *(instance.origin, instance.peer, int(conflict), now),
            ),
        )
        instance_id = int(row.lastrowid or 0)
        conn.execute(
            "INSERT INTO lineage (instance_id, scan_id, detail, created_s) VALUES (?, ?, ?, ?)",
            (instance_id, instance.scan_id, json.dumps(instance.lineage), now),
        )
        audit.append(conn, now, "conflict" if conflict else instance.origin, uid, digest)
        return Kept(instance_id, new=True, conflict=conflict)

    # Deliveries

    def claim(self, destination: str, now: float, limit: int = 32) -> list[Delivery]:
        """Take up to `limit` due deliveries for sending. Only one thread at a time may serve a destination."""
        with self._transaction() as conn:
            rows = conn.execute(
                "SELECT d.id, i.id, d.destination, d.priority, d.attempts, i.sop_class_uid, i.sop_instance_uid,"
                " i.transfer_syntax_uid, i.digest, i.n_bytes FROM deliveries d JOIN instances i ON i.id = d.instance_id"
                " WHERE d.destination = ? AND d.state = 'queued'"
                " AND (d.next_try_s <= ? OR d.changed_s > ?)"
                " ORDER BY d.priority DESC, d.id LIMIT ?",
                (destination, now, now, limit),
            ).fetchall()
            conn.executemany(
                "UPDATE deliveries SET state = 'sending', changed_s = ? WHERE id = ?", [(now, row[0]) for row in rows]
            )
        return [Delivery(*row) for row in rows]

    def read_instance(self, delivery: Delivery) -> bytes:
        """Give the Part 10 bytes. Raises ObjectError when they are gone or altered."""
        return self._objects.read(delivery.digest)

    def release(self, destination: str, now: float) -> None:
        """Give everything back that is in sending to `destination`. Only its own thread may."""
        with self._transaction() as conn:
            conn.execute(
                "UPDATE deliveries SET state = 'queued', changed_s = ? WHERE state = 'sending' AND destination = ?",
                (now, destination),
            )

    def mark_sent(self, deliveries: Sequence[Delivery], now: float) -> None:
        """Record that the destination answered each with success."""
        with self._transaction() as conn:
            for delivery in deliveries:
                self._change(conn, delivery, "sent", now, "")
                audit.append(conn, now, "sent", delivery.sop_instance_uid, delivery.destination)

    def retry_later(self, delivery: Delivery, next_try: float, error: str, now: float) -> None:
        """Put one delivery back until `next_try`; there is no attempt after which it is given up."""
        with self._transaction() as conn:
            self._change(conn, delivery, "queued", now, error)
            conn.execute("UPDATE deliveries SET next_try_s = ? WHERE id = ?", (next_try, delivery.delivery_id))

    def quarantine(self, delivery: Delivery, error: str, now: float) -> None:
        """Keep one delivery, that the destination will never take as it is, for people to look at."""
        with self._transaction() as conn:
            self._change(conn, delivery, "quarantined", now, error)
            audit.append(conn, now, "quarantined", delivery.sop_instance_uid, f"{delivery.destination}: {error}")

    @staticmethod
    def _change(conn: sqlite3.Connection, delivery: Delivery, state: str, now: float, error: str) -> None:
        conn.execute(
            "UPDATE deliveries SET state = ?, attempts = attempts + 1, last_error = ?, changed_s = ? WHERE id = ?",
            (state, error, now, delivery.delivery_id),
        )

    # The whole

    def recover(self, now: float) -> None:
        """After a restart: what was in work is queued again. Only for the one process that claims."""
        with self._transaction() as conn:
            conn.execute("UPDATE deliveries SET state = 'queued', changed_s = ? WHERE state = 'sending'", (now,))
            conn.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            waiting = [row[0] for row in conn.execute("SELECT digest FROM jobs")]
            self._objects.sweep_temp(now - _ABANDONED_S)
            self._spool.sweep_temp(now - _ABANDONED_S)
            self._spool.sweep(now - _ABANDONED_S, keep=waiting)

    def purge(self, now: float, keep_delivered_s: float) -> int:
        """Delete the bytes of instances delivered everywhere they are owed for `keep_delivered_s`; gives how many."""
        with self._transaction() as conn:
            rows = conn.execute(
                "SELECT i.id, i.digest FROM instances i JOIN deliveries d ON d.instance_id = i.id"
                " WHERE i.purged_s IS NULL GROUP BY i.id"
                " HAVING min(d.state IN ('sent', 'committed')) = 1 AND max(d.changed_s) <= ? LIMIT ?",
                (now - keep_delivered_s, _PURGE_AT_ONCE),
            ).fetchall()
            for instance_id, digest in rows:
                self._purge_one(conn, instance_id, digest, now)
        return len(rows)

    def _purge_one(self, conn: sqlite3.Connection, instance_id: int, digest: str, now: float) -> None:
        conn.execute("UPDATE instances SET purged_s = ? WHERE id = ?", (now, instance_id))
        wanted = "SELECT 1 FROM instances WHERE digest = ? AND purged_s IS NULL"
        if conn.execute(wanted, (digest,)).fetchone() is None:
            self._objects.delete(digest)  # before the commit: a kill leaves a row to purge again, not an orphan
        audit.append(conn, now, "purged", digest)

    def record(self, event: str, subject: str, detail: str, now: float) -> None:
        """Append to the audit chain. Never patient data."""
        with self._transaction() as conn:
            audit.append(conn, now, event, subject, detail)

    def first_broken_audit_row(self) -> int | None:
        """Give the first audit row that was altered; None: the chain is whole."""
        with self._lock:
            return audit.first_broken_row(self._conn)

    def counts(self) -> dict[str, Any]:
        """Count everything: plain values for status, console and metrics."""
        rows = self._query("SELECT destination, state, count(*) FROM deliveries GROUP BY destination, state")
        names: Iterable[str] = sorted({row[0] for row in rows})
        destinations = {name: dict.fromkeys(STATES, 0) for name in names}
        for name, state, n in rows:
            destinations[name][state] = n
        jobs = dict(self._query("SELECT state, count(*) FROM jobs GROUP BY state"))
        origins = dict(self._query("SELECT origin, count(*) FROM instances GROUP BY origin"))
        conflicts = self._query("SELECT count(*) FROM instances WHERE conflict = 1")[0][0]
        return {
            "produced": origins.get("produced", 0),
            "received": origins.get("received", 0),
            "conflicts": conflicts,
            "jobs": jobs.get("queued", 0) + jobs.get("running", 0),
            "jobs_quarantined": jobs.get("quarantined", 0),
            **{state: sum(counts[state] for counts in destinations.values()) for state in STATES},
            "destinations": destinations,
        }
