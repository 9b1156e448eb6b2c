# SPDX-License-Identifier: Apache-2.0
"""Whether destinations have kept what they took: what is to be asked, and what became of each delivery.

Rule: a transaction is on disk before it is asked for. A report of any of our transactions counts, however late, twice
or in whatever order, unless the delivery was sent again since; what it does not name stays open until it is asked for
again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.segments import Place

_NEWEST = 10  # requests of one delivery whose reports count
MAX_REFUSALS = 3  # of one delivery: it is sent again after the first two
NOT_COMMITTED = "not committed after it was sent"  # what the error of such a delivery begins with
_FOR_EVER = float("inf")


@dataclass(frozen=True)
class Uncommitted:
    """A delivery that was sent and is to be asked about."""

    delivery_id: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    place: Place
    sent_s: float
    asked_s: float  # 0: never yet


@dataclass(frozen=True)
class Reported:
    """What a report did. `good`: committed, or verified."""

    known: bool
    good: int = 0
    sent_again: int = 0
    quarantined: int = 0


class Commitments:
    """Of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def uncommitted(self, destination: str, asked_before_s: float, now: float, limit: int = 100) -> list[Uncommitted]:
        """Give what is to be asked about and was not since `asked_before_s`; a row from the future is due."""
        found: list[Uncommitted] = []
        for state in ("sent", "verified"):
            for after, until in ((-1.0, max(asked_before_s, 0.0)), (now, _FOR_EVER)):
                rows = self._database.query(
                    "SELECT d.id, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.segment, i.position,"
                    " d.changed_s, d.asked_s FROM deliveries d JOIN instances i ON i.id = d.instance_id"
                    " WHERE d.destination = ? AND d.state = ? AND d.asked_s > ? AND d.asked_s <= ?"
                    " ORDER BY d.asked_s, d.id LIMIT ?",
                    (destination, state, after, until, limit - len(found)),
                )
                found += [
                    Uncommitted(row[0], row[1], row[2], row[3], Place(row[4], row[5]), row[6], row[7]) for row in rows
                ]
        return found

    def waits(self, destination: str) -> bool:
        """Whether a report of `destination` is waited for."""
        rows = self._database.query(
            "SELECT 1 FROM deliveries WHERE destination = ? AND state = 'sent' AND asked_s > 0 LIMIT 1", (destination,)
        )
        return bool(rows)

    def is_reported(self, transaction_uid: str) -> bool:
        """Whether nothing of the transaction is open any more."""
        rows = self._database.query(
            "SELECT 1 FROM commitment_items i JOIN commitments c ON c.id = i.commitment_id"
            " WHERE c.transaction_uid = ? AND i.outcome = '' LIMIT 1",
            (transaction_uid,),
        )
        return not rows

    def n_quarantined(self, destination: str) -> int:
        """How many wait for people because `destination` took them and did not keep them."""
        ((n,),) = self._database.query(
            "SELECT count(*) FROM deliveries WHERE destination = ? AND state = 'quarantined' AND last_error LIKE ?",
            (destination, NOT_COMMITTED + "%"),
        )
        return int(n)

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
            conn.executemany(
                "DELETE FROM commitment_items WHERE delivery_id = ?1 AND outcome = '' AND id NOT IN"
                " (SELECT id FROM commitment_items WHERE delivery_id = ?1 ORDER BY id DESC LIMIT ?2)",
                [(item.delivery_id, _NEWEST) for item in items],
            )
            conn.executemany(
                "UPDATE deliveries SET asked_s = ? WHERE id = ?", [(now, item.delivery_id) for item in items]
            )
            audit.append(conn, now, "commitment asked", transaction_uid, f"{destination}: {len(items)} instances")

    def ask_again(self, transaction_uid: str, now: float) -> None:
        """Nobody knows whether the destination took this transaction: ask at once, and take its report if it comes."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE deliveries SET asked_s = 0 WHERE asked_s IS NOT NULL AND id IN (SELECT i.delivery_id"
                " FROM commitment_items i JOIN commitments c ON c.id = i.commitment_id WHERE c.transaction_uid = ?)",
                (transaction_uid,),
            )
            audit.append(conn, now, "commitment not answered", transaction_uid)

    def report(
        self, transaction_uid: str, good: Collection[str], failed: Mapping[str, int], now: float,
        *, state: str = "committed",
    ) -> Reported:  # fmt: skip
        """Take a report: SOP Instance UIDs that are now in `state`, and those that failed with their reasons."""
        with self._database.transaction() as conn:
            row = conn.execute("SELECT id FROM commitments WHERE transaction_uid = ?", (transaction_uid,)).fetchone()
            if row is None:
                return Reported(known=False)
            items = conn.execute(
                "SELECT i.id, i.delivery_id, i.sop_instance_uid FROM commitment_items i"
                " JOIN deliveries d ON d.id = i.delivery_id"
                " WHERE i.commitment_id = ? AND i.outcome = '' AND d.state IN ('sent', 'verified')",
                row,
            ).fetchall()
            counts = {"good": 0, "sent_again": 0, "quarantined": 0}
            for item_id, delivery_id, uid in items:
                if uid in failed:
                    counts[_failed(conn, item_id, delivery_id, failed[uid], now)] += 1
                elif uid in good:
                    counts["good"] += 1
                    _good(conn, item_id, delivery_id, state, now)
            audit.append(conn, now, f"{state} reported", transaction_uid, str(counts))
        return Reported(known=True, **counts)

    def drop(self, transaction_uid: str) -> None:
        """Forget a transaction that nobody will report on, but for what failed: that is counted."""
        with self._database.transaction() as conn:
            conn.execute(
                "DELETE FROM commitment_items WHERE outcome IN ('', 'verified') AND commitment_id ="
                " (SELECT id FROM commitments WHERE transaction_uid = ?)",
                (transaction_uid,),
            )

    def forget(self, before_s: float) -> None:
        """Forget what was asked before then about deliveries that are committed: no report changes them."""
        with self._database.transaction() as conn:
            conn.execute(
                "DELETE FROM commitment_items WHERE id IN (SELECT i.id FROM commitment_items i"
                " JOIN commitments c ON c.id = i.commitment_id JOIN deliveries d ON d.id = i.delivery_id"
                " WHERE c.created_s < ? AND d.state = 'committed')",
                (before_s,),
            )
            conn.execute(
                "DELETE FROM commitments WHERE NOT EXISTS"
                " (SELECT 1 FROM commitment_items i WHERE i.commitment_id = commitments.id)"
            )


def _good(conn: sqlite3.Connection, item_id: int, delivery_id: int, state: str, now: float) -> None:
    conn.execute("UPDATE commitment_items SET outcome = ? WHERE id = ?", (state, item_id))
    conn.execute(
        "UPDATE deliveries SET state = ?1, last_error = '', changed_s = ?2,"
        " asked_s = CASE WHEN ?1 = 'verified' AND enough = 'committed' THEN asked_s END WHERE id = ?3",
        (state, now, delivery_id),
    )


def _failed(conn: sqlite3.Connection, item_id: int, delivery_id: int, reason: int, now: float) -> str:
    """It said success and did not keep it: send it again, and after some times have people look. Whatever else was
    asked of this sending is void: its report must not count for the next one."""
    conn.execute("UPDATE commitment_items SET outcome = ? WHERE id = ?", (f"failed 0x{reason:04X}", item_id))
    conn.execute("UPDATE commitment_items SET outcome = 'void' WHERE delivery_id = ? AND outcome = ''", (delivery_id,))
    (n_failed,) = conn.execute(
        "SELECT count(*) FROM commitment_items WHERE delivery_id = ? AND outcome LIKE 'failed%'", (delivery_id,)
    ).fetchone()
    state = "quarantined" if n_failed >= MAX_REFUSALS else "queued"
    text = f"{NOT_COMMITTED}, reason 0x{reason:04X}, time {n_failed}"
    conn.execute(
        "UPDATE deliveries SET state = ?, last_error = ?, changed_s = ?, next_try_s = ? WHERE id = ?",
        (state, text, now, now, delivery_id),
    )
    return "quarantined" if state == "quarantined" else "sent_again"
