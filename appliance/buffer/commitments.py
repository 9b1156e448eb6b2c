# SPDX-License-Identifier: Apache-2.0
"""Storage commitment that we asked for: which transactions are open, and what became of each delivery.

Rule: a transaction is on disk before it is asked for. A report of any of our transactions counts, however late, twice
or in whatever order; what it does not name stays open until it is asked for again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from appliance.buffer import audit
from appliance.buffer.database import Database

MAX_REFUSALS = 3  # of one delivery: it is sent again after the first two


@dataclass(frozen=True)
class Uncommitted:
    """A delivery that was sent and is to be committed."""

    delivery_id: int
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Reported:
    """What a report did."""

    known: bool
    committed: int = 0
    sent_again: int = 0
    quarantined: int = 0


class Commitments:
    """Of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def uncommitted(self, destination: str, asked_before_s: float, limit: int = 100) -> list[Uncommitted]:
        """Give what was sent to `destination`, must be committed, and was not asked for since `asked_before_s`."""
        rows = self._database.query(
            "SELECT d.id, i.sop_class_uid, i.sop_instance_uid FROM deliveries d"
            " JOIN instances i ON i.id = d.instance_id"
            " WHERE d.destination = ? AND d.state = 'sent' AND d.must_commit = 1 AND NOT EXISTS ("
            "  SELECT 1 FROM commitment_items c JOIN commitments t ON t.id = c.commitment_id"
            "  WHERE c.delivery_id = d.id AND c.outcome = '' AND t.created_s > ?) ORDER BY d.id LIMIT ?",
            (destination, asked_before_s, limit),
        )
        return [Uncommitted(*row) for row in rows]

    def begin(self, transaction_uid: str, destination: str, items: Collection[Uncommitted], now: float) -> None:
        """Keep a transaction that is about to be asked for."""
        with self._database.transaction() as conn:
            row = conn.execute(
                "INSERT INTO commitments (transaction_uid, destination, created_s) VALUES (?, ?, ?)",
                (transaction_uid, destination, now),
            )
            conn.executemany(
                "INSERT INTO commitment_items (commitment_id, delivery_id, sop_instance_uid, outcome)"
                " VALUES (?, ?, ?, '')",
                [(row.lastrowid, item.delivery_id, item.sop_instance_uid) for item in items],
            )
            audit.append(conn, now, "commitment asked", transaction_uid, f"{destination}: {len(items)} instances")

    def refused(self, transaction_uid: str, now: float) -> None:
        """Forget a transaction that the destination did not accept."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE commitment_items SET outcome = 'not asked' WHERE outcome = '' AND commitment_id ="
                " (SELECT id FROM commitments WHERE transaction_uid = ?)",
                (transaction_uid,),
            )
            audit.append(conn, now, "commitment refused", transaction_uid)

    def report(
        self, transaction_uid: str, committed: Collection[str], failed: Mapping[str, int], now: float
    ) -> Reported:
        """Take a report: SOP Instance UIDs that are committed, and those that failed with their reasons."""
        with self._database.transaction() as conn:
            row = conn.execute("SELECT id FROM commitments WHERE transaction_uid = ?", (transaction_uid,)).fetchone()
            if row is None:
                return Reported(known=False)
            items = conn.execute(
                "SELECT id, delivery_id, sop_instance_uid FROM commitment_items"
                " WHERE commitment_id = ? AND outcome = ''",
                row,
            ).fetchall()
            counts = {"committed": 0, "sent_again": 0, "quarantined": 0}
            for item_id, delivery_id, uid in items:
                if uid in failed:
                    counts[self._failed(conn, item_id, delivery_id, failed[uid], now)] += 1
                elif uid in committed:
                    counts["committed"] += self._committed(conn, item_id, delivery_id, now)
            audit.append(conn, now, "commitment reported", transaction_uid, str(counts))
        return Reported(known=True, **counts)

    @staticmethod
    def _committed(conn: sqlite3.Connection, item_id: int, delivery_id: int, now: float) -> int:
        conn.execute("UPDATE commitment_items SET outcome = 'committed' WHERE id = ?", (item_id,))
        done = conn.execute(
            "UPDATE deliveries SET state = 'committed', last_error = '', changed_s = ? WHERE id = ? AND state = 'sent'",
            (now, delivery_id),
        )
        return done.rowcount

    @staticmethod
    def _failed(conn: sqlite3.Connection, item_id: int, delivery_id: int, reason: int, now: float) -> str:
        """It said success and did not keep it: send it again, and after some times have people look."""
        conn.execute("UPDATE commitment_items SET outcome = ? WHERE id = ?", (f"failed 0x{reason:04X}", item_id))
        (n_failed,) = conn.execute(
            "SELECT count(*) FROM commitment_items WHERE delivery_id = ? AND outcome LIKE 'failed%'", (delivery_id,)
        ).fetchone()
        state = "quarantined" if n_failed >= MAX_REFUSALS else "queued"
        text = f"not committed after it was sent, reason 0x{reason:04X}, time {n_failed}"
        conn.execute(
            "UPDATE deliveries SET state = ?, last_error = ?, changed_s = ?, next_try_s = ?"
            " WHERE id = ? AND state = 'sent'",
            (state, text, now, now, delivery_id),
        )
        return "quarantined" if state == "quarantined" else "sent_again"
