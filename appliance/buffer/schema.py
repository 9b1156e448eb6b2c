# SPDX-License-Identifier: Apache-2.0
"""The tables of the buffer, and a connection that is durable or refused."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlite_utils
from sqlite_utils.db import DescIndex

from appliance.buffer.segments import fsync_folder
from appliance.errors import StorageError

VERSION = 4
_OLDEST = 2  # since then tables and columns were only added, and `_create` adds what is missing
_BUSY_TIMEOUT_S = 30.0  # another process' commit takes milliseconds; this long means a stuck disk
_FULL = 2  # PRAGMA synchronous

_TABLES: dict[str, dict[str, type]] = {
    "instances": {
        "id": int,
        "sop_class_uid": str,
        "sop_instance_uid": str,
        "transfer_syntax_uid": str,
        "digest": str,
        "n_bytes": int,
        "segment": str,
        "position": int,
        "origin": str,  # produced | received
        "peer": str,
        "association": str,  # which one brought it
        "conflict": int,  # 1: another instance has this UID and other bytes
        "created_s": float,
        "purged_s": float,
    },
    "deliveries": {
        "id": int,
        "instance_id": int,
        "destination": str,
        "state": str,  # queued | sending | sent | verified | committed | held | quarantined
        "enough": str,  # sent | verified | committed: the state that lets it go; set when it is sent
        "asked_s": float,  # when its destination was last asked about it; 0: never yet, NULL: not to be asked
        "priority": int,
        "attempts": int,
        "next_try_s": float,
        "last_error": str,
        "created_s": float,
        "changed_s": float,
        "sent_s": float,  # when its destination last said that it has it
    },
    "jobs": {
        "id": int,
        "kind": str,
        "meta": str,  # JSON; holds the identity of who was scanned
        "digest": str,
        "segment": str,
        "position": int,
        "state": str,  # queued | running | quarantined; a finished job's row is deleted
        "priority": int,
        "attempts": int,
        "next_try_s": float,
        "last_error": str,
        "created_s": float,
    },
    "association_ends": {"association": str, "ended_s": float, "released": int},
    "series": {
        "id": int,
        "series_instance_uid": str,
        "study_instance_uid": str,
        "modality": str,
        "state": str,  # open | complete
        "reason": str,
        "n_instances": int,
        "n_expected": int,  # 0: they do not say
        "last_s": float,
        "first_instance_id": int,
        "last_instance_id": int,
        "reopened": int,
    },
    "scans": {  # of live pipelines that keep their images; not made anew by a rebuild
        "id": int,
        "scan_id": str,
        "pipeline": str,
        "modality": str,
        "protocol": str,
        "attributes": str,  # JSON; who was scanned
        "started_s": float,
        "ended_s": float,  # NULL: it runs
        "status": str,  # complete | incomplete | aborted
        "reason": str,
        "n_frames": int,
    },
    "acknowledgements": {"process": str, "key": str, "text": str, "person": str, "at_s": float},  # of alarms that stand
    "pipeline_progress": {
        "id": int,
        "pipeline": str,
        "series_instance_uid": str,  # empty: where this pipeline began
        "opening": int,
        "last_instance_id": int,  # of what is done
        "state": str,  # running | done
        "changed_s": float,
    },
    "segments": {"id": int, "name": str, "indexed": int},  # the bytes of it that the other tables know
    # What a received instance says of itself; `attributes` is JSON and holds identity.
    "descriptions": {"instance_id": int, "study_instance_uid": str, "series_instance_uid": str, "attributes": str},
    "commitments": {"id": int, "transaction_uid": str, "destination": str, "created_s": float},
    "commitment_items": {
        "id": int,
        "commitment_id": int,
        "delivery_id": int,
        "sop_instance_uid": str,
        "outcome": str,  # empty: open; committed | verified | failed 0x… | void: it was sent again since
    },
    "commitment_requests": {
        "id": int,
        "transaction_uid": str,
        "calling_ae_title": str,
        "instances": str,  # JSON
        "attempts": int,
        "next_s": float,
        "created_s": float,
        "done_s": float,
    },
    "mpps": {
        "id": int,
        "sop_instance_uid": str,
        "status": str,  # IN PROGRESS | COMPLETED | DISCONTINUED
        "series": str,  # JSON: SOP Instance UIDs by Series Instance UID
        "peer": str,
        "created_s": float,
        "changed_s": float,
    },
    "drift": {
        "id": int,
        "pipeline": str,
        "model": str,
        "bins": str,  # digest of the model and of the edges between the bins
        "hour": int,  # since 1970
        "n_frames": int,
        "counts": str,  # JSON
    },
    "lineage": {"id": int, "instance_id": int, "scan_id": str, "detail": str, "created_s": float},
    "audit": {"id": int, "at_s": float, "event": str, "subject": str, "detail": str, "seal": str},
}
_KEYS: dict[str, str | tuple[str, ...]] = {
    "association_ends": "association",
    "descriptions": "instance_id",
    "acknowledgements": ("process", "key"),
}
_NOT_NULL = {
    "deliveries": {"instance_id", "destination", "state", "priority", "attempts", "next_try_s"},
    "jobs": {"kind", "meta", "digest", "state", "priority", "attempts", "next_try_s"},
    "instances": {"sop_class_uid", "sop_instance_uid", "transfer_syntax_uid", "digest", "origin", "conflict"},
}
_INDEXES: tuple[tuple[str, tuple[str | DescIndex, ...], bool], ...] = (
    ("instances", ("sop_instance_uid", "digest"), True),
    ("instances", ("segment",), False),
    ("instances", ("origin",), False),
    ("deliveries", ("instance_id", "destination"), True),
    ("deliveries", ("destination", "state", DescIndex("priority"), "id"), False),
    ("deliveries", ("destination", "state", "asked_s", "id"), False),
    ("jobs", ("state", DescIndex("priority"), "id"), False),
    ("jobs", ("segment",), False),
    ("series", ("series_instance_uid",), True),
    ("series", ("state",), False),
    ("series", ("last_instance_id",), False),
    ("series", ("last_s",), False),
    ("scans", ("scan_id",), True),
    ("scans", ("started_s",), False),
    ("pipeline_progress", ("series_instance_uid",), False),
    ("pipeline_progress", ("pipeline", "series_instance_uid"), True),
    ("segments", ("name",), True),
    ("mpps", ("sop_instance_uid",), True),
    ("commitments", ("transaction_uid",), True),
    ("commitment_items", ("commitment_id",), False),
    ("commitment_items", ("delivery_id", "outcome"), False),
    ("commitment_requests", ("transaction_uid", "calling_ae_title"), True),
    ("commitment_requests", ("done_s", "next_s"), False),
    ("descriptions", ("series_instance_uid",), False),
    ("descriptions", ("study_instance_uid",), False),
    ("lineage", ("instance_id",), True),
    ("lineage", ("scan_id",), False),
    ("drift", ("pipeline", "model", "bins", "hour"), True),
)


def _create(conn: sqlite3.Connection) -> None:
    database = sqlite_utils.Database(conn)
    for name, columns in _TABLES.items():
        table = database[name]
        table.create(columns, pk=_KEYS.get(name, "id"), not_null=_NOT_NULL.get(name), if_not_exists=True)
        for column in columns.keys() - table.columns_dict.keys():
            table.add_column(column, columns[column])
    for table, index_columns, unique in _INDEXES:
        database[table].create_index(index_columns, unique=unique, if_not_exists=True)
    for verb in ("UPDATE", "DELETE"):
        conn.execute(
            f"CREATE TRIGGER IF NOT EXISTS audit_no_{verb.lower()} BEFORE {verb} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit table is append-only'); END"
        )
    conn.execute(f"PRAGMA user_version = {VERSION}")


def _make_durable(conn: sqlite3.Connection) -> None:
    # The row must be fetched: an I/O error while switching is reported nowhere else.
    mode = conn.execute("PRAGMA journal_mode = wal").fetchone()[0]
    conn.execute("PRAGMA synchronous = FULL")
    synchronous = conn.execute("PRAGMA synchronous").fetchone()[0]
    if mode != "wal" or synchronous != _FULL:
        raise StorageError(
            f"buffer: expected journal mode 'wal' and synchronous {_FULL}, got {mode!r} and {synchronous!r}; "
            "put site.data_dir on a local disk"
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Let one process at a time switch to WAL and make the tables: SQLite answers the others "locked" at once."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def open_database(path: Path) -> sqlite3.Connection:
    """Open (and create) the database at `path`, durable. Raises StorageError."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o640))  # SQLite gives -wal and -shm the same mode
        conn = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with _alone_in(path.parent):
            _prepare(conn, path)
        fsync_folder(path.parent)  # SQLite ignores it when its own fsync of the folder fails
    except (sqlite3.Error, OSError) as error:
        raise StorageError(f"buffer: cannot open {path}: {error}; check site.data_dir and its disk") from error
    return conn


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    _make_durable(conn)
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StorageError(f"buffer: {path} has version {version}, this program knows {VERSION}; update nearscan")
    if 0 < version < _OLDEST:
        raise StorageError(
            f"buffer: {path} has version {version} of before the first release; deliver what it owes with the "
            "version that made it, then move it away"
        )
    if version < VERSION:
        _create(conn)
