# SPDX-License-Identifier: Apache-2.0
"""What people do with the outbox: look, hold, release, try again. Safe while the deliverer runs.

Rule: what is being sent is never touched, and every change leaves an audit row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from appliance.buffer import audit
from appliance.buffer.database import Database

_COLUMNS = (
    *("d.id", "d.destination", "d.state", "d.priority", "d.attempts", "i.sop_instance_uid", "i.sop_class_uid"),
    *("i.transfer_syntax_uid", "i.n_bytes", "i.digest", "i.segment", "i.position", "i.origin", "i.peer"),
    *("d.created_s", "d.changed_s", "d.next_try_s", "d.last_error", "i.purged_s"),
)
_FROM = {  # action -> states in which it makes sense, and what comes out
    "retry": (("queued", "quarantined"), "queued"),
    "hold": (("queued", "quarantined"), "held"),
    "release": (("held",), "queued"),
}
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
    how many were not: they are being sent, or it makes no sense for their state."""
    states, after = _FROM[action]
    where, values = selection.where()
    reason = f"held by {person}" if action == "hold" else ""
    with database.transaction() as conn:
        found: Sequence[tuple[Any, ...]] = conn.execute(
            "SELECT d.id, d.state, i.sop_instance_uid, d.destination FROM deliveries d"
            f" JOIN instances i ON i.id = d.instance_id WHERE {where}",
            values,
        ).fetchall()
        changing = [row for row in found if row[1] in states]
        for delivery_id, state, uid, destination in changing:
            conn.execute(
                "UPDATE deliveries SET state = ?, next_try_s = ?, changed_s = ?, last_error = ? WHERE id = ?",
                (after, now, now, reason, delivery_id),
            )
            audit.append(conn, now, action, uid, f"{destination}: {state} -> {after} by {person}")
    return len(changing), len(found) - len(changing)


def statistics(database: Database, now: float) -> dict[str, Any]:
    """Count instances, bytes and ages: plain values."""
    owed = database.query(
        "SELECT d.destination, d.state, count(*), sum(i.n_bytes), min(d.created_s)"
        " FROM deliveries d JOIN instances i ON i.id = d.instance_id GROUP BY d.destination, d.state"
    )
    (instances,) = database.query("SELECT count(*), coalesce(sum(n_bytes), 0) FROM instances WHERE purged_s IS NULL")
    return {
        "instances": instances[0],
        "bytes": instances[1],
        "deliveries": [
            {
                "destination": destination,
                "state": state,
                "count": count,
                "bytes": n_bytes,
                "oldest_s": round(max(0.0, now - oldest), 1),
            }
            for destination, state, count, n_bytes, oldest in owed
        ],
    }
