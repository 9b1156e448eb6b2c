# SPDX-License-Identifier: Apache-2.0
"""Studies, series and instances that the buffer holds, by what they say of themselves. Results are identity."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from appliance.buffer.database import Database
from appliance.buffer.segments import Place

Level = Literal["studies", "series", "instances"]
MOST = 1000
_GROUP = {"studies": "d.study_instance_uid", "series": "d.series_instance_uid", "instances": "i.id"}


@dataclass(frozen=True)
class Found:
    """One study, series or instance."""

    attributes: Mapping[str, str] = field(repr=False)  # of its first instance
    sop_class_uid: str
    sop_instance_uid: str
    n_series: int
    n_instances: int


@dataclass(frozen=True)
class Held:
    """Where one instance is."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    n_bytes: int
    digest: str
    place: Place


def _where(uids: Mapping[str, str]) -> tuple[str, list[str]]:
    columns = {"study": "d.study_instance_uid", "series": "d.series_instance_uid", "instance": "i.sop_instance_uid"}
    terms = ["i.purged_s IS NULL", *(f"{columns[level]} = ?" for level in uids)]
    return " AND ".join(terms), list(uids.values())


def _conditions(wanted: Mapping[str, str]) -> tuple[str, list[str]]:
    """Give matching as SQL (PS3.4 C.2.2.2): a list of UIDs, a range, a pattern, or a value."""
    sql, values = "", []
    for keyword, value in wanted.items():
        expression = "coalesce(json_extract(d.attributes, ?), '')"
        path = f"$.{keyword}"
        if keyword.endswith("UID") and ("," in value or "\\" in value):
            uids = value.replace("\\", ",").split(",")
            sql += f" AND {expression} IN ({', '.join('?' * len(uids))})"
            values += [path, *uids]
        elif keyword.endswith(("Date", "Time")) and "-" in value:
            low, _, high = value.partition("-")
            sql += f" AND {expression} >= ? AND {expression} <= ?"
            values += [path, low, path, (high or "9") + "~"]
        elif "*" in value or "?" in value:
            sql += f" AND {expression} GLOB ?"
            values += [path, value.replace("[", "[[]")]
        else:
            sql += f" AND {expression} = ?"
            values += [path, value]
    return sql, values


def search(
    database: Database, level: Level, uids: Mapping[str, str], wanted: Mapping[str, str], offset: int, limit: int
) -> list[Found]:
    """Give what matches, oldest first. `uids` narrows by study and series, `wanted` by keyword."""
    where, values = _where(uids)
    conditions, more = _conditions(wanted)
    rows = database.query(
        "SELECT d.attributes, i.sop_class_uid, i.sop_instance_uid, count(DISTINCT d.series_instance_uid), count(*),"
        f" min(i.id) FROM instances i JOIN descriptions d ON d.instance_id = i.id WHERE {where}{conditions}"
        f" GROUP BY {_GROUP[level]} ORDER BY min(i.id) LIMIT ? OFFSET ?",
        [*values, *more, min(limit, MOST), offset],
    )
    return [Found(json.loads(row[0]), *row[1:5]) for row in rows]


def held(database: Database, uids: Mapping[str, str]) -> list[Held]:
    """Give the instances of a study, series or instance, in the order in which they came."""
    where, values = _where(uids)
    rows: list[tuple[Any, ...]] = database.query(
        "SELECT i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.n_bytes, i.digest, i.segment, i.position"
        f" FROM instances i JOIN descriptions d ON d.instance_id = i.id WHERE {where} ORDER BY i.id",
        values,
    )
    return [Held(*(*row[:5], Place(row[5], row[6]))) for row in rows]
