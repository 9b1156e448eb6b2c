# SPDX-License-Identifier: Apache-2.0
"""The audit table: append-only, each row sealed with the hash of the row before it.

Rule: no patient data; a subject is a UID, a scan id, a destination's name or an account's.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3

from appliance.buffer.database import Database

_FIRST = "0" * 64
_ROWS_AT_ONCE = 10_000


def _seal(previous: str, at_s: float, event: str, subject: str, detail: str) -> str:
    return hashlib.sha256(json.dumps([previous, at_s, event, subject, detail]).encode()).hexdigest()


def append(conn: sqlite3.Connection, now: float, event: str, subject: str, detail: str = "") -> None:
    """Add one row inside the caller's transaction."""
    last = conn.execute("SELECT seal FROM audit ORDER BY id DESC LIMIT 1").fetchone()
    seal = _seal(last[0] if last else _FIRST, float(now), event, subject, detail)
    conn.execute(
        "INSERT INTO audit (at_s, event, subject, detail, seal) VALUES (?, ?, ?, ?, ?)",
        (now, event, subject, detail, seal),
    )


def first_broken_row(database: Database) -> int | None:
    """Give the id of the first row that does not follow from the one before; None: the chain is whole. Read piece by
    piece: others go on writing."""
    previous, last_id = _FIRST, 0
    while rows := database.query(
        "SELECT id, at_s, event, subject, detail, seal FROM audit WHERE id > ? ORDER BY id LIMIT ?",
        (last_id, _ROWS_AT_ONCE),
    ):
        for row_id, at_s, event, subject, detail, seal in rows:
            if seal != _seal(previous, at_s, event, subject, detail):
                return int(row_id)
            previous, last_id = seal, row_id
    return None
