# SPDX-License-Identifier: Apache-2.0
"""Storage commitment that others ask of us: their requests, until they have taken the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.buffer import audit
from appliance.buffer.database import Database


@dataclass(frozen=True)
class CommitmentRequest:
    """One request that was not yet answered."""

    request_id: int
    transaction_uid: str
    calling_ae_title: str
    instances: tuple[tuple[str, str], ...]  # (SOP class, SOP instance)
    attempts: int
    created_s: float


class CommitmentRequests:
    """Of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, transaction_uid: str, calling: str, instances: Sequence[tuple[str, str]], now: float) -> None:
        """Keep a request; the same one again is no error."""
        with self._database.transaction() as conn:
            conn.execute(
                "INSERT OR IGNORE INTO commitment_requests (transaction_uid, calling_ae_title, instances, attempts,"
                " next_s, created_s) VALUES (?, ?, ?, 0, ?, ?)",
                (transaction_uid, calling, json.dumps([list(one) for one in instances]), now, now),
            )
            audit.append(conn, now, "commitment requested", transaction_uid, f"{calling}: {len(instances)} instances")

    def due(self, now: float) -> list[CommitmentRequest]:
        """Give the requests that are to be answered now."""
        rows = self._database.query(
            "SELECT id, transaction_uid, calling_ae_title, instances, attempts, created_s FROM commitment_requests"
            " WHERE done_s IS NULL AND (next_s <= ? OR created_s > ?) ORDER BY id LIMIT 20",
            (now, now),
        )
        return [
            CommitmentRequest(row[0], row[1], row[2], tuple((one[0], one[1]) for one in json.loads(row[3])), *row[4:])
            for row in rows
        ]

    def held(self, sop_instance_uids: Sequence[str]) -> dict[str, str]:
        """Give the SOP class of each of these that we have, or have delivered to all that were owed it."""
        found: dict[str, str] = {}
        for at in range(0, len(sop_instance_uids), 500):
            uids = list(sop_instance_uids[at : at + 500])
            rows = self._database.query(
                "SELECT sop_instance_uid, sop_class_uid FROM instances"
                f" WHERE sop_instance_uid IN ({', '.join('?' * len(uids))})",
                uids,
            )
            found |= dict(rows)
        return found

    def later(self, request: CommitmentRequest, next_s: float) -> None:
        """Try again at `next_s`."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE commitment_requests SET attempts = attempts + 1, next_s = ? WHERE id = ?",
                (next_s, request.request_id),
            )

    def done(self, request: CommitmentRequest, now: float) -> None:
        """The report was taken."""
        with self._database.transaction() as conn:
            conn.execute("UPDATE commitment_requests SET done_s = ? WHERE id = ?", (now, request.request_id))
            audit.append(conn, now, "commitment answered", request.transaction_uid, request.calling_ae_title)
