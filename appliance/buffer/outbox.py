# SPDX-License-Identifier: Apache-2.0
"""What is owed to whom: the deliveries and their states.

A row from the future means that the clock was set back, and is due. A larger priority goes first, then the older row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.records import Delivery
from appliance.buffer.segments import Place

STATES = ("queued", "sending", "sent", "verified", "committed", "held", "quarantined")


def _asked_s(enough: str) -> float | None:
    return None if enough == "sent" else 0.0


class Outbox:
    """The deliveries of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, destination: str, now: float, limit: int = 32) -> list[Delivery]:
        """Take up to `limit` due deliveries for sending. Only one thread at a time may serve a destination."""
        with self._database.transaction() as conn:
            rows = conn.execute(
                "SELECT d.id, i.id, d.destination, d.priority, d.attempts, i.sop_class_uid, i.sop_instance_uid,"
                " i.transfer_syntax_uid, i.digest, i.n_bytes, i.segment, i.position"
                " FROM deliveries d JOIN instances i ON i.id = d.instance_id"
                " WHERE d.destination = ? AND d.state = 'queued'"
                " AND (d.next_try_s <= ? OR d.changed_s > ?)"
                " ORDER BY d.priority DESC, d.id LIMIT ?",
                (destination, now, now, limit),
            ).fetchall()
            conn.executemany(
                "UPDATE deliveries SET state = 'sending', changed_s = ? WHERE id = ?", [(now, row[0]) for row in rows]
            )
        return [Delivery(*(*row[:-2], Place(*row[-2:]))) for row in rows]

    def release(self, destination: str, now: float) -> None:
        """Give everything back that is in sending to `destination`. Only its own thread may."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE deliveries SET state = 'queued', changed_s = ? WHERE state = 'sending' AND destination = ?",
                (now, destination),
            )

    def mark_sent(self, deliveries: Sequence[Delivery], now: float, *, enough: str = "sent") -> None:
        """Record that the destination answered each with success; `enough` is the state that lets it go."""
        with self._database.transaction() as conn:
            for delivery in deliveries:
                self._change(conn, delivery, "sent", now, "")
                conn.execute(
                    "UPDATE deliveries SET enough = ?, asked_s = ?, sent_s = ? WHERE id = ?",
                    (enough, _asked_s(enough), now, delivery.delivery_id),
                )
                audit.append(conn, now, "sent", delivery.sop_instance_uid, delivery.destination)

    def require(self, destination: str, enough: str) -> None:
        """Have `enough` count for what was sent to `destination` under another setting and is still here."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE deliveries SET enough = ?, asked_s = ? WHERE destination = ? AND state IN ('sent', 'verified')"
                " AND enough <> ? AND instance_id IN (SELECT id FROM instances WHERE purged_s IS NULL)",
                (enough, _asked_s(enough), destination, enough),
            )

    def retry_later(self, delivery: Delivery, next_try: float, error: str, now: float) -> None:
        """Put one delivery back until `next_try`; there is no attempt after which it is given up."""
        with self._database.transaction() as conn:
            self._change(conn, delivery, "queued", now, error)
            conn.execute("UPDATE deliveries SET next_try_s = ? WHERE id = ?", (next_try, delivery.delivery_id))

    def quarantine(self, delivery: Delivery, error: str, now: float) -> None:
        """Keep one delivery, that the destination will never take as it is, for people to look at."""
        with self._database.transaction() as conn:
            self._change(conn, delivery, "quarantined", now, error)
            audit.append(conn, now, "quarantined", delivery.sop_instance_uid, f"{delivery.destination}: {error}")

    @staticmethod
    def _change(conn: sqlite3.Connection, delivery: Delivery, state: str, now: float, error: str) -> None:
        conn.execute(
            "UPDATE deliveries SET state = ?, attempts = attempts + 1, last_error = ?, changed_s = ? WHERE id = ?",
            (state, error, now, delivery.delivery_id),
        )
