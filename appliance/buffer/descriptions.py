# SPDX-License-Identifier: Apache-2.0
"""What received instances say about themselves, and what is owed of them; made after the acknowledgement."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.buffer import audit, index, series
from appliance.buffer.buffer import Buffer
from appliance.buffer.records import Kept
from appliance.buffer.segments import Place


@dataclass(frozen=True)
class Undescribed:
    """A received instance that nobody has looked at yet."""

    instance_id: int
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str
    conflict: bool
    place: Place


@dataclass(frozen=True)
class Described:
    """What it says, and to whom it is owed. `attributes` is identity: never log it."""

    instance: Undescribed
    attributes: Mapping[str, str] = field(repr=False)
    destinations: tuple[str, ...] = ()
    priority: int = 0
    rules: tuple[str, ...] = ()


def undescribed(buffer: Buffer, limit: int) -> list[Undescribed]:
    """Give the oldest instances that are to be described; it is done in order, so none is before the last one."""
    rows = buffer.database.query(
        "SELECT i.id, i.sop_instance_uid, i.transfer_syntax_uid, i.peer, i.conflict, i.segment, i.position"
        " FROM instances i WHERE i.id > coalesce((SELECT max(instance_id) FROM descriptions), 0)"
        " AND +i.origin = 'received' ORDER BY i.id LIMIT ?",
        (limit,),
    )
    return [Undescribed(row[0], row[1], row[2], row[3], bool(row[4]), Place(row[5], row[6])) for row in rows]


def keep(buffer: Buffer, described: Sequence[Described], now: float) -> int:
    """Keep the descriptions, what is owed and the series, all or nothing; again is no error. Gives how many series
    were complete and are open again."""
    n_reopened = 0
    with buffer.database.transaction() as conn:
        for one in described:
            new = conn.execute(
                "INSERT OR IGNORE INTO descriptions (instance_id, study_instance_uid, series_instance_uid, attributes)"
                " VALUES (?, ?, ?, ?)",
                (
                    one.instance.instance_id,
                    one.attributes.get("StudyInstanceUID", ""),
                    one.attributes.get("SeriesInstanceUID", ""),
                    json.dumps(dict(one.attributes)),
                ),
            ).rowcount
            if new and not one.instance.conflict and series.add(conn, one.instance.instance_id, one.attributes):
                n_reopened += 1
                audit.append(conn, now, "series opened again", one.attributes["SeriesInstanceUID"])
            kept = Kept(one.instance.instance_id, new=True, conflict=one.instance.conflict)
            index.owe(conn, kept, list(one.destinations), one.priority, now)
            audit.append(conn, now, "routed", one.instance.sop_instance_uid, f"{one.rules} to {one.destinations}")
    return n_reopened
