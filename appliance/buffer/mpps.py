# SPDX-License-Identifier: Apache-2.0
"""Performed procedure steps that modalities tell us of: what state each is in, and the images of its series."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from appliance.buffer import audit
from appliance.buffer.database import Database

IN_PROGRESS = "IN PROGRESS"
FINAL = ("COMPLETED", "DISCONTINUED")
Outcome = Literal["done", "exists", "unknown", "final"]


class ProcedureSteps:
    """Of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, uid: str, status: str, series: Mapping[str, Sequence[str]], peer: str, now: float) -> Outcome:
        """Keep a new one; `series` is the SOP Instance UIDs by Series Instance UID."""
        with self._database.transaction() as conn:
            if conn.execute("SELECT 1 FROM mpps WHERE sop_instance_uid = ?", (uid,)).fetchone():
                return "exists"
            conn.execute(
                "INSERT INTO mpps (sop_instance_uid, status, series, peer, created_s, changed_s)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (uid, status, json.dumps(dict(series)), peer, now, now),
            )
            audit.append(conn, now, "procedure step", uid, status)
        return "done"

    def change(self, uid: str, status: str, series: Mapping[str, Sequence[str]], now: float) -> Outcome:
        """Change one that is not final; an empty `status`, and series that are not named, stay as they are."""
        with self._database.transaction() as conn:
            row = conn.execute("SELECT status, series FROM mpps WHERE sop_instance_uid = ?", (uid,)).fetchone()
            if row is None:
                return "unknown"
            if row[0] in FINAL:
                return "final"
            merged = {**json.loads(row[1]), **series}
            conn.execute(
                "UPDATE mpps SET status = ?, series = ?, changed_s = ? WHERE sop_instance_uid = ?",
                (status or row[0], json.dumps(merged), now, uid),
            )
            audit.append(conn, now, "procedure step", uid, status or row[0])
        return "done"

    def of_series(self, series_instance_uid: str) -> tuple[str, list[str]] | None:
        """Give (status, SOP Instance UIDs) that a modality told of a series; None: it told nothing."""
        rows = self._database.query(
            "SELECT status, json_extract(series, ?) FROM mpps WHERE json_extract(series, ?) IS NOT NULL"
            " ORDER BY changed_s DESC LIMIT 1",
            (f'$."{series_instance_uid}"', f'$."{series_instance_uid}"'),
        )
        return (str(rows[0][0]), json.loads(rows[0][1])) if rows else None
