# SPDX-License-Identifier: Apache-2.0
"""What people do with the outbox: look, hold, release, try again. Safe while the deliverer runs.

Rule: what is being sent is never touched, and every change leaves an audit row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.outbox import STATES

_COLUMNS = (
    *("d.id", "d.destination", "d.state", "d.priority", "d.attempts", "i.sop_instance_uid", "i.sop_class_uid"),
    *("i.transfer_syntax_uid", "i.n_bytes", "i.digest", "i.segment", "i.position", "i.origin", "i.peer"),
    *("d.created_s", "d.changed_s", "d.sent_s", "d.next_try_s", "d.last_error", "i.purged_s", "d.instance_id"),
)
_FROM = {  # action -> states in which it makes sense, and what comes out
    "retry": (("queued", "quarantined"), "queued"),
    "hold": (("queued", "quarantined"), "held"),
    "release": (("held",), "queued"),
}
ACTIONS = tuple(_FROM)
_AT_ONCE = 500


@dataclass(frozen=True)
class Selection:
    """Which deliveries; what is empty does not narrow it."""

    ids: tuple[int, ...] = ()
    destination: str = ""
    state: str = ""

    def where(self) -> tuple[str, list[Any]]:
        """Give it as SQL."""
        terms: list[tuple[str, list[Any]]] = []
        if self.ids:
            terms.append((f"d.id IN ({', '.join('?' * len(self.ids))})", list(self.ids)))
        if self.destination:
            terms.append(("d.destination = ?", [self.destination]))
        if self.state:
            terms.append(("d.state = ?", [self.state]))
        return " AND ".join(term for term, _ in terms) or "1", [value for _, values in terms for value in values]


def deliveries(database: Database, selection: Selection, limit: int) -> list[dict[str, Any]]:
    """Give what is selected, what is sent next first; plain values, no identity."""
    where, values = selection.where()
    rows = database.query(
        f"SELECT {', '.join(_COLUMNS)} FROM deliveries d JOIN instances i ON i.id = d.instance_id WHERE {where}"
        " ORDER BY d.priority DESC, d.id LIMIT ?",
        [*values, limit],
    )
    return [dict(zip((name.partition(".")[2] for name in _COLUMNS), row, strict=True)) for row in rows]


def change(database: Database, action: str, selection: Selection, person: str, now: float) -> tuple[int, int]:
    """Have `person` do `action` (retry, hold, release) to what is selected; gives how many were changed, and
    how many were not: they are being sent, or it makes no sense for their state. Some hundred at a time, so that
    whoever receives and delivers never waits long."""
    n_changed = n_left = last_id = 0
    while True:
        with database.transaction() as conn:
            found = _next(conn, selection, last_id)
            changing = [row for row in found if row[1] in _FROM[action][0]]
            for row in changing:
                _change(conn, action, row, person, now)
        n_changed, n_left = n_changed + len(changing), n_left + len(found) - len(changing)
        if len(found) < _AT_ONCE:
            return n_changed, n_left
        last_id = found[-1][0]


def _next(conn: sqlite3.Connection, selection: Selection, last_id: int) -> Sequence[tuple[Any, ...]]:
    where, values = selection.where()
    return conn.execute(
        "SELECT d.id, d.state, i.sop_instance_uid, d.destination FROM deliveries d"
        f" JOIN instances i ON i.id = d.instance_id WHERE {where} AND d.id > ? ORDER BY d.id LIMIT ?",
        [*values, last_id, _AT_ONCE],
    ).fetchall()


def _change(conn: sqlite3.Connection, action: str, row: Sequence[Any], person: str, now: float) -> None:
    (delivery_id, state, uid, destination), after = row, _FROM[action][1]
    reason = f"held by {person}" if action == "hold" else ""
    conn.execute(
        "UPDATE deliveries SET state = ?, next_try_s = ?, changed_s = ?, last_error = ? WHERE id = ?",
        (after, now, now, reason, delivery_id),
    )
    audit.append(conn, now, action, uid, f"{destination}: {state} -> {after} by {person}")


def destinations(database: Database) -> list[str]:
    """Give the names that anything was ever owed to, one step in the index for each."""
    rows = database.query(
        "WITH RECURSIVE names(name) AS (SELECT min(destination) FROM deliveries UNION ALL"
        " SELECT (SELECT min(destination) FROM deliveries WHERE destination > name) FROM names WHERE name IS NOT NULL)"
        " SELECT name FROM names WHERE name IS NOT NULL"
    )
    return [row[0] for row in rows]


def owed(
    database: Database, now: float, destinations: Sequence[str] | None = None, states: Sequence[str] = STATES
) -> list[dict[str, Any]]:
    """Count deliveries, bytes and ages by destination and state: plain values. None: of all destinations."""
    where, values = f"d.state IN ({_marks(states)})", list(states)
    if destinations is not None:
        where, values = f"d.destination IN ({_marks(destinations)}) AND {where}", [*destinations, *values]
    rows = database.query(
        "SELECT d.destination, d.state, count(*), sum(i.n_bytes), min(d.created_s) FROM deliveries d"
        f" JOIN instances i ON i.id = d.instance_id WHERE {where} GROUP BY d.destination, d.state",
        values,
    )
    names = ("destination", "state", "count", "bytes", "oldest_s")
    return [dict(zip(names, (*row[:4], round(max(0.0, now - row[4]), 1)), strict=True)) for row in rows]


def _marks(values: Sequence[str]) -> str:
    return ", ".join("?" * len(values))


def stuck_jobs(database: Database, limit: int) -> list[dict[str, Any]]:
    """Give the images that could not be built and are kept for people to look at; no identity."""
    rows = database.query(
        "SELECT id, json_extract(meta, '$.scan.scan_id'), created_s, attempts, last_error FROM jobs"
        " WHERE state = 'quarantined' ORDER BY id LIMIT ?",
        (limit,),
    )
    return [dict(zip(("id", "scan_id", "created_s", "attempts", "last_error"), row, strict=True)) for row in rows]


def statistics(database: Database, now: float) -> dict[str, Any]:
    """Count instances, bytes and ages: plain values."""
    (instances,) = database.query("SELECT count(*), coalesce(sum(n_bytes), 0) FROM instances WHERE purged_s IS NULL")
    return {
        "instances": instances[0],
        "bytes": instances[1],
        "deliveries": owed(database, now),
    }
