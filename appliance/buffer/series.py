# SPDX-License-Identifier: Apache-2.0
"""The received series: what belongs to each, whether more is expected, and how the associations that brought it ended.

Rule: a row changes in the transaction that describes its instance, so that it never counts what is not described.
An instance whose UID is here with other bytes is held back and belongs to none.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.segments import Place

OPEN, COMPLETE = "open", "complete"
_COLUMNS = (
    "series_instance_uid, study_instance_uid, modality, state, reason, n_instances, n_expected, last_s,"
    " first_instance_id, last_instance_id, reopened"
)


@dataclass(frozen=True)
class Series:
    """One series as it is now."""

    series_instance_uid: str
    study_instance_uid: str
    modality: str
    state: str
    reason: str  # why it is complete, or why it is open again
    n_instances: int
    n_expected: int  # once it is complete; 0: nobody said
    last_s: float  # when its newest instance came
    first_instance_id: int
    last_instance_id: int
    reopened: int  # how often something came after it was complete


@dataclass(frozen=True)
class Member:
    """One instance of a series. `attributes` is identity: never log it."""

    instance_id: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str
    created_s: float
    purged: bool
    n_bytes: int
    digest: str
    place: Place
    attributes: Mapping[str, str] = field(repr=False)


def add(conn: sqlite3.Connection, instance_id: int, attributes: Mapping[str, str]) -> bool:
    """Count one instance, inside the caller's transaction; says whether its series was complete before."""
    uid = attributes.get("SeriesInstanceUID", "")
    if not uid:
        return False
    complete = conn.execute(
        "SELECT 1 FROM series WHERE series_instance_uid = ? AND state = 'complete'", (uid,)
    ).fetchone()
    conn.execute(
        "INSERT INTO series (series_instance_uid, study_instance_uid, modality, state, reason, n_instances,"
        " n_expected, last_s, first_instance_id, last_instance_id, reopened)"
        " SELECT ?, ?, ?, 'open', '', 1, 0, created_s, id, id, 0 FROM instances WHERE id = ?"
        " ON CONFLICT (series_instance_uid) DO UPDATE SET n_instances = n_instances + 1, last_s = excluded.last_s,"
        " last_instance_id = excluded.last_instance_id, reopened = reopened + (state = 'complete'),"
        " reason = CASE state WHEN 'complete' THEN 'open again after: ' || reason ELSE reason END, state = 'open'",
        (uid, attributes.get("StudyInstanceUID", ""), attributes.get("Modality", ""), instance_id),
    )
    return complete is not None


def open_series(database: Database) -> list[Series]:
    """Give the series that are not complete."""
    return [Series(*row) for row in database.query(f"SELECT {_COLUMNS} FROM series WHERE state = 'open'")]


def changed_since(database: Database, instance_id: int) -> list[Series]:
    """Give the series to which something later than `instance_id` was added, as it came."""
    sql = f"SELECT {_COLUMNS} FROM series WHERE last_instance_id > ? ORDER BY last_instance_id"
    return [Series(*row) for row in database.query(sql, (instance_id,))]


def one_series(database: Database, series_instance_uid: str) -> Series | None:
    """Give one series."""
    rows = database.query(f"SELECT {_COLUMNS} FROM series WHERE series_instance_uid = ?", (series_instance_uid,))
    return Series(*rows[0]) if rows else None


def members(database: Database, series_instance_uid: str, after_id: int = 0, limit: int = -1) -> list[Member]:
    """Give the instances of a series that came after `after_id`, in the order of arrival."""
    rows = database.query(
        "SELECT i.id, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.peer, i.created_s,"
        " i.purged_s IS NOT NULL, i.n_bytes, i.digest, i.segment, i.position, d.attributes"
        " FROM descriptions d JOIN instances i ON i.id = d.instance_id"
        " WHERE d.series_instance_uid = ? AND i.id > ? AND i.conflict = 0 ORDER BY i.id LIMIT ?",
        (series_instance_uid, after_id, limit),
    )
    return [Member(*(*row[:6], bool(row[6]), *row[7:9], Place(*row[9:11]), json.loads(row[11]))) for row in rows]


def came_by(database: Database, series_instance_uid: str) -> list[tuple[int, bool]]:
    """Give for each association that brought some of it: how many instances, and whether it was released since."""
    rows = database.query(
        "SELECT count(*), max(coalesce(e.released, 0)) FROM descriptions d JOIN instances i ON i.id = d.instance_id"
        " LEFT JOIN association_ends e ON e.association = i.association"
        " WHERE d.series_instance_uid = ? AND i.conflict = 0 GROUP BY i.association",
        (series_instance_uid,),
    )
    return [(n, bool(released)) for n, released in rows]


def complete(database: Database, series: Series, reason: str, n_expected: int, now: float) -> bool:
    """Mark `series` complete, unless something was added to it since; says whether it is."""
    with database.transaction() as conn:
        done = conn.execute(
            "UPDATE series SET state = 'complete', reason = ?, n_expected = ?"
            " WHERE series_instance_uid = ? AND last_instance_id = ? AND state = 'open'",
            (reason, n_expected, series.series_instance_uid, series.last_instance_id),
        ).rowcount
        if done:
            audit.append(conn, now, "series complete", series.series_instance_uid, reason)
    return bool(done)


def end_associations(database: Database, ends: Sequence[tuple[str, bool]], now: float) -> None:
    """Record associations that ended, (its id, whether it was released). Everything they brought must be indexed."""
    with database.transaction() as conn:
        conn.executemany(
            "INSERT OR REPLACE INTO association_ends (association, ended_s, released) VALUES (?, ?, ?)",
            [(association, now, int(released)) for association, released in ends],
        )
