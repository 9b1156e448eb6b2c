# SPDX-License-Identifier: Apache-2.0
"""The audit table: append-only, each row sealed with the hash of the row before it.

Rule: no patient data; a subject is a UID, a scan id or a destination's name.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3

_FIRST = "0" * 64


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


def first_broken_row(conn: sqlite3.Connection) -> int | None:
    """Give the id of the first row that does not follow from the one before; None: the chain is whole."""
    previous = _FIRST
    for row_id, at_s, event, subject, detail, seal in conn.execute(
        "SELECT id, at_s, event, subject, detail, seal FROM audit ORDER BY id"
    ):
        if seal != _seal(previous, at_s, event, subject, detail):
            return int(row_id)
        previous = seal
    return None
