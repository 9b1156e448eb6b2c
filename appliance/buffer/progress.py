# SPDX-License-Identifier: Apache-2.0
"""What each pipeline has done of the inbox: whole series, each opening of one once.

A stage may hold a whole scan in memory, so that a crash cannot go on in its middle: a scan that was running is done
again from its first instance, as the same opening, and so with the same identifiers.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.buffer.database import Database


@dataclass(frozen=True)
class Progress:
    """How far one pipeline is with one series."""

    opening: int  # from 1; one more each time something came after it was done
    last_instance_id: int  # of what is done
    running: bool


def began_at(database: Database, pipeline: str, now: float) -> int:
    """Give the last instance that was here when this pipeline ran first: it takes what came later."""
    with database.transaction() as conn:
        conn.execute(
            "INSERT OR IGNORE INTO pipeline_progress (pipeline, series_instance_uid, opening, last_instance_id, state,"
            " changed_s) SELECT ?, '', 0, coalesce(max(id), 0), 'done', ? FROM instances",
            (pipeline, now),
        )
        row = conn.execute(
            "SELECT last_instance_id FROM pipeline_progress WHERE pipeline = ? AND series_instance_uid = ''",
            (pipeline,),
        ).fetchone()
    return int(row[0])


def progress_of(database: Database, pipeline: str, series_instance_uid: str) -> Progress | None:
    """Give how far it is; None: not begun."""
    rows = database.query(
        "SELECT opening, last_instance_id, state = 'running' FROM pipeline_progress"
        " WHERE pipeline = ? AND series_instance_uid = ?",
        (pipeline, series_instance_uid),
    )
    return Progress(rows[0][0], rows[0][1], bool(rows[0][2])) if rows else None


def begin(database: Database, pipeline: str, series_instance_uid: str, now: float) -> int:
    """Begin a series, or the one that was running again; gives which opening this is."""
    with database.transaction() as conn:
        row = conn.execute(
            "INSERT INTO pipeline_progress (pipeline, series_instance_uid, opening, last_instance_id, state, changed_s)"
            " VALUES (?, ?, 1, 0, 'running', ?) ON CONFLICT (pipeline, series_instance_uid) DO UPDATE SET"
            " opening = opening + (state = 'done'), state = 'running', changed_s = excluded.changed_s"
            " RETURNING opening",
            (pipeline, series_instance_uid, now),
        ).fetchone()
    return int(row[0])


def finish(database: Database, pipeline: str, series_instance_uid: str, last_instance_id: int, now: float) -> None:
    """Note that the pipeline is done with everything up to `last_instance_id`."""
    with database.transaction() as conn:
        conn.execute(
            "UPDATE pipeline_progress SET state = 'done', last_instance_id = ?, changed_s = ?"
            " WHERE pipeline = ? AND series_instance_uid = ?",
            (last_instance_id, now, pipeline, series_instance_uid),
        )
