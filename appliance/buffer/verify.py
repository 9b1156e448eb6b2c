# SPDX-License-Identifier: Apache-2.0
"""Reads everything that the buffer holds and says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.buffer.buffer import Buffer
from appliance.buffer.segments import ObjectError, Place
from appliance.errors import StorageError

_AT_ONCE = 500


def findings(buffer: Buffer) -> Iterator[str]:
    """Give one line for each thing that is wrong. What comes and goes meanwhile is no finding."""
    try:
        buffer.database.check()
    except StorageError as error:
        yield str(error)
        return
    row = buffer.first_broken_audit_row()
    if row is not None:
        yield f"audit: row {row} does not follow from the one before; somebody altered it"
    yield from _altered(buffer, "instances", "purged_s IS NULL")
    yield from _altered(buffer, "jobs", "1")
    for name in buffer.segments.names():
        if not buffer.segments.is_written_to(name) and _unindexed(buffer, name):
            yield f"segments: {name} holds what the database does not know; a start of nearscan takes it in"


def _altered(buffer: Buffer, table: str, where: str) -> Iterator[str]:
    last = 0
    while rows := buffer.database.query(
        f"SELECT id, digest, segment, position FROM {table} WHERE id > ? AND {where} ORDER BY id LIMIT ?",
        (last, _AT_ONCE),
    ):
        last = rows[-1][0]
        for row_id, digest, segment, position in rows:
            try:
                buffer.segments.read(Place(segment, position), digest)
            except ObjectError as error:
                if buffer.database.query(f"SELECT 1 FROM {table} WHERE id = ? AND {where}", (row_id,)):
                    yield f"{table}: {row_id}: {error}"


def _unindexed(buffer: Buffer, name: str) -> bool:
    rows = buffer.database.query("SELECT indexed FROM segments WHERE name = ?", (name,))
    known = rows[0][0] if rows else 0
    return any(not record.gone for record in buffer.segments.records(name, known))
