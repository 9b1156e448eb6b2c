# SPDX-License-Identifier: Apache-2.0
"""One open database: short transactions and queries, durable or StorageError."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.buffer.schema import open_database
from appliance.errors import StorageError


class Database:
    """Thread-safe; any number of processes may have the same file open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._conn = open_database(path)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close it."""
        with self._lock:
            self._conn.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, on disk at the end. Raises StorageError."""
        with self._lock:
            try:
                self._conn.execute("BEGIN IMMEDIATE")
                yield self._conn
                self._conn.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise StorageError(f"buffer: not written: {error}; check the disk of site.data_dir") from error
            finally:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Give all rows. Raises StorageError."""
        with self._lock:
            try:
                return self._conn.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise StorageError(f"buffer: not readable: {error}; check the disk of site.data_dir") from error

    def check(self) -> None:
        """Raises StorageError when the file is damaged."""
        found = [row[0] for row in self.query("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise StorageError(f"buffer: {self.path} is damaged ({found[0]}); run 'nearscan buffer rebuild'")
