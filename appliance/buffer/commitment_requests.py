# SPDX-License-Identifier: Apache-2.0
"""Storage commitment that others ask of us: their requests, until they have taken the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from appliance.buffer import audit
from appliance.buffer.database import Database
from appliance.buffer.segments import Place


@dataclass(frozen=True)
class CommitmentRequest:
    """One request that was not yet answered."""

    request_id: int
    transaction_uid: str
    calling_ae_title: str
    instances: tuple[tuple[str, str], ...]  # (SOP class, SOP instance)
    attempts: int
    created_s: float


@dataclass(frozen=True)
class Holding:
    """An instance that we have, or had."""

    sop_class_uid: str
    digest: str
    place: Place | None  # None: it was purged, after it was delivered to all that were owed it


class CommitmentRequests:
    """Of one open buffer. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, transaction_uid: str, calling: str, instances: Sequence[tuple[str, str]], now: float) -> None:
        """Keep a request; the same one again is answered again."""
        with self._database.transaction() as conn:
            conn.execute(
                "INSERT INTO commitment_requests (transaction_uid, calling_ae_title, instances, attempts,"
                " next_s, created_s) VALUES (?, ?, ?, 0, ?, ?)"
                " ON CONFLICT (transaction_uid, calling_ae_title) DO UPDATE SET instances = excluded.instances,"
                " attempts = 0, next_s = excluded.next_s, created_s = excluded.created_s, done_s = NULL",
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

    def held(self, sop_instance_uids: Sequence[str]) -> dict[str, list[Holding]]:
        """Give what there is of each of these."""
        found: dict[str, list[Holding]] = {}
        for at in range(0, len(sop_instance_uids), 500):
            uids = list(sop_instance_uids[at : at + 500])
            for uid, *row, purged_s in self._database.query(
                "SELECT sop_instance_uid, sop_class_uid, digest, segment, position, purged_s FROM instances"
                f" WHERE sop_instance_uid IN ({', '.join('?' * len(uids))})",
                uids,
            ):
                place = Place(row[2], row[3]) if purged_s is None else None
                found.setdefault(uid, []).append(Holding(row[0], row[1], place))
        return found

    def later(self, request: CommitmentRequest, next_s: float) -> None:
        """Try again at `next_s`."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE commitment_requests SET attempts = attempts + 1, next_s = ? WHERE id = ?",
                (next_s, request.request_id),
            )

    def peer_away(self, calling_ae_title: str, until_s: float) -> None:
        """Leave all requests of one peer until then."""
        with self._database.transaction() as conn:
            conn.execute(
                "UPDATE commitment_requests SET next_s = ? WHERE calling_ae_title = ? AND done_s IS NULL"
                " AND next_s < ?",
                (until_s, calling_ae_title, until_s),
            )

    def forget(self, before_s: float) -> None:
        """Forget what was answered before then."""
        with self._database.transaction() as conn:
            conn.execute("DELETE FROM commitment_requests WHERE done_s < ?", (before_s,))

    def done(self, request: CommitmentRequest, now: float) -> None:
        """The report was taken."""
        with self._database.transaction() as conn:
            conn.execute("UPDATE commitment_requests SET done_s = ? WHERE id = ?", (now, request.request_id))
            audit.append(conn, now, "commitment answered", request.transaction_uid, request.calling_ae_title)
