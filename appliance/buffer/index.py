# SPDX-License-Identifier: Apache-2.0
"""Rows of the database for records of the segments; the only place that knows what a record's meta means."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.records import Kept, NewInstance, NewJob
from appliance.buffer.segments import Place, Record

_OF_INSTANCE = (
    *("sop_class_uid", "sop_instance_uid", "transfer_syntax_uid", "origin", "peer", "association", "destinations"),
    *("priority", "scan_id"),
)


def meta_of_instance(instance: NewInstance, now: float) -> dict[str, Any]:
    """Give what a record says of an instance."""
    fields = {name: getattr(instance, name) for name in _OF_INSTANCE}
    return {"record": "instance", "created_s": now, **fields, "lineage": dict(instance.lineage)}


def meta_of_job(job: NewJob, now: float) -> dict[str, Any]:
    """Give what a record says of a job."""
    return {"record": "job", "created_s": now, "kind": job.kind, "meta": dict(job.meta), "priority": job.priority}


def indexed(conn: sqlite3.Connection, segment: str) -> int:
    """Give how many bytes of the segment the database knows."""
    row = conn.execute("SELECT indexed FROM segments WHERE name = ?", (segment,)).fetchone()
    return int(row[0]) if row else 0


def set_indexed(conn: sqlite3.Connection, segment: str, end: int) -> None:
    """Note that the database knows the segment up to `end`."""
    conn.execute(
        "INSERT INTO segments (name, indexed) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET indexed = excluded.indexed",
        (segment, end),
    )


def holds(database: Database, place: Place) -> bool:
    """Whether an instance's bytes are those of the record at `place`."""
    rows = database.query("SELECT 1 FROM instances WHERE segment = ? AND position = ?", (place.segment, place.position))
    return bool(rows)


def insert(conn: sqlite3.Connection, record: Record) -> Kept | int | None:
    """Add the rows of any record; gives what became of an instance, or the id of a job."""
    if record.gone:
        return None
    if record.meta["record"] == "instance":
        return insert_instance(conn, record)
    return insert_job(conn, record)


def insert_job(conn: sqlite3.Connection, record: Record) -> int:
    """Add the row of a job; gives its id."""
    meta = record.meta
    row = conn.execute(
        "INSERT INTO jobs (kind, meta, digest, segment, position, state, priority, attempts, next_try_s, last_error,"
        " created_s) VALUES (?, ?, ?, ?, ?, 'queued', ?, 0, ?, '', ?)",
        (
            *(meta["kind"], json.dumps(meta["meta"]), record.digest, record.place.segment, record.place.position),
            *(meta["priority"], meta["created_s"], meta["created_s"]),
        ),
    )
    return int(row.lastrowid or 0)


def insert_instance(conn: sqlite3.Connection, record: Record) -> Kept:
    """Add the rows of an instance and of what is owed, or find that it is here already."""
    meta = record.meta
    same = conn.execute(
        "SELECT id, conflict, purged_s FROM instances WHERE sop_instance_uid = ? AND digest = ?",
        (meta["sop_instance_uid"], record.digest),
    ).fetchone()
    if same is None:
        kept = _insert_new(conn, record, meta)
    else:
        kept = Kept(same[0], new=False, conflict=bool(same[1]))
        if same[2] is not None:  # its bytes were purged: these take their place
            conn.execute(
                "UPDATE instances SET purged_s = NULL, segment = ?, position = ? WHERE id = ?",
                (record.place.segment, record.place.position, same[0]),
            )
    owe(conn, kept, meta["destinations"], meta["priority"], meta["created_s"])
    return kept


def owe(conn: sqlite3.Connection, kept: Kept, destinations: list[str], priority: int, now: float) -> None:
    """Add what is owed of one instance; what is owed already stays as it is."""
    state = "held" if kept.conflict else "queued"
    reason = "another instance has the same UID and other bytes" if kept.conflict else ""
    conn.executemany(
        "INSERT OR IGNORE INTO deliveries (instance_id, destination, state, priority, attempts, next_try_s,"
        " last_error, created_s, changed_s) VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?)",
        [(kept.instance_id, name, state, priority, now, reason, now, now) for name in destinations],
    )


def _insert_new(conn: sqlite3.Connection, record: Record, meta: Mapping[str, Any]) -> Kept:
    uid, now = meta["sop_instance_uid"], meta["created_s"]
    conflict = conn.execute("SELECT 1 FROM instances WHERE sop_instance_uid = ?", (uid,)).fetchone() is not None
    row = conn.execute(
        "INSERT INTO instances (sop_class_uid, sop_instance_uid, transfer_syntax_uid, digest, n_bytes, segment,"
        " position, origin, peer, association, conflict, created_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(meta["sop_class_uid"], uid, meta["transfer_syntax_uid"], record.digest, record.n_bytes),
            *(record.place.segment, record.place.position, meta["origin"], meta["peer"], meta["association"]),
            *(int(conflict), now),
        ),
    )
    instance_id = int(row.lastrowid or 0)
    conn.execute(
        "INSERT INTO lineage (instance_id, scan_id, detail, created_s) VALUES (?, ?, ?, ?)",
        (instance_id, meta["scan_id"], json.dumps(meta["lineage"]), now),
    )
    audit.append(conn, now, "conflict" if conflict else meta["origin"], uid, record.digest)
    return Kept(instance_id, new=True, conflict=conflict)
