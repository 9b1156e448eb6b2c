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
_COLUMNS = {
    "SOPClassUID": "i.sop_class_uid",
    "SOPInstanceUID": "i.sop_instance_uid",
    "StudyInstanceUID": "d.study_instance_uid",
    "SeriesInstanceUID": "d.series_instance_uid",
}
_GROUP = {"studies": "d.study_instance_uid", "series": "d.series_instance_uid", "instances": "i.id"}


@dataclass(frozen=True)
class Found:
    """One study, series or instance."""

    attributes: Mapping[str, str] = field(repr=False)  # of its first instance
    sop_class_uid: str
    sop_instance_uid: str
    n_series: int
    n_instances: int
    modalities: str  # of a study, a backslash between


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
    """Give matching as SQL (PS3.4 C.2.2.2): anything, a list of UIDs, a range, a pattern, or a value."""
    sql, values = "", list[str]()
    for keyword, value in wanted.items():
        if not value:
            continue  # universal matching, C.2.2.2.3
        condition, more = _condition(keyword, value)
        sql += f" AND {condition}"
        values += more
    return sql, values


def _condition(keyword: str, value: str) -> tuple[str, list[str]]:
    if keyword == "ModalitiesInStudy":
        inner, more = _condition("Modality", value)
        return f"d.study_instance_uid IN (SELECT d.study_instance_uid FROM descriptions d WHERE {inner})", more
    column = _COLUMNS.get(keyword)
    expression, path = (column, []) if column else ("coalesce(json_extract(d.attributes, ?), '')", [f"$.{keyword}"])
    if keyword.endswith("UID") and ("," in value or "\\" in value):
        uids = value.replace("\\", ",").split(",")
        return f"{expression} IN ({', '.join('?' * len(uids))})", [*path, *uids]
    if keyword.endswith(("Date", "Time")) and "-" in value:
        low, _, high = value.partition("-")
        return f"{expression} BETWEEN ? AND ?", [*path, low or "0", (high or "9") + "~"]
    if "*" in value or "?" in value:
        return f"{expression} GLOB ?", [*path, value.replace("[", "[[]")]
    return f"{expression} = ?", [*path, value]


def search(
    database: Database, level: Level, uids: Mapping[str, str], wanted: Mapping[str, str], offset: int, limit: int
) -> list[Found]:
    """Give what matches, oldest first. `uids` narrows by study and series, `wanted` by keyword."""
    where, values = _where(uids)
    conditions, more = _conditions(wanted)
    kinds = "group_concat(DISTINCT json_extract(d.attributes, '$.Modality'))" if level == "studies" else "''"
    rows = database.query(
        "SELECT d.attributes, i.sop_class_uid, i.sop_instance_uid, count(DISTINCT d.series_instance_uid), count(*),"
        f" {kinds}, min(i.id) FROM instances i JOIN descriptions d ON d.instance_id = i.id WHERE {where}{conditions}"
        f" GROUP BY {_GROUP[level]} ORDER BY min(i.id) LIMIT ? OFFSET ?",
        [*values, *more, min(limit, MOST), offset],
    )
    return [Found(json.loads(row[0]), *(*row[1:5], (row[5] or "").replace(",", "\\"))) for row in rows]


def held(database: Database, uids: Mapping[str, str]) -> list[Held]:
    """Give the instances of a study, series or instance, in the order in which they came."""
    where, values = _where(uids)
    rows: list[tuple[Any, ...]] = database.query(
        "SELECT i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.n_bytes, i.digest, i.segment, i.position"
        f" FROM instances i JOIN descriptions d ON d.instance_id = i.id WHERE {where} ORDER BY i.id",
        values,
    )
    return [Held(*(*row[:5], Place(row[5], row[6]))) for row in rows]


def instance(database: Database, instance_id: int) -> Held | None:
    """Give one instance whose bytes are here, by the number of its row."""
    rows = database.query(
        "SELECT sop_class_uid, sop_instance_uid, transfer_syntax_uid, n_bytes, digest, segment, position"
        " FROM instances WHERE id = ? AND purged_s IS NULL",
        (instance_id,),
    )
    return Held(*(*rows[0][:5], Place(*rows[0][5:]))) if rows else None
