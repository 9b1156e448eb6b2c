# SPDX-License-Identifier: Apache-2.0
"""What people do at the console, into the buffer's audit chain.

An action of the page is written like this::

    async def _retry(self, request: Request) -> Response:   # Route("/api/…/retry", needs("technologist", self._retry))
        …                                                   # POST; the guard has checked X-CSRF-Token already
        await self.audit(acting(request), "retry", f"{destination}: 3 deliveries")

What writes its own row in its own transaction (`outbox_desk.change`) needs no second one. Rule: no patient data in
`detail`, and nothing that was typed and is not known to be harmless.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from starlette.requests import HTTPConnection

from appliance.buffer import Buffer, audit
from appliance.console.roles import person


class Store:
    """The site's buffer, opened when it is first wanted. Thread-safe; its methods may wait for the disk."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._buffer: Buffer | None = None
        self._opening = threading.Lock()

    def existing(self) -> Buffer | None:
        """Return the buffer, None where there is none yet. Raises StorageError."""
        with self._opening:
            if self._buffer is None and (self._data_dir / "nearscan.sqlite").exists():
                self._buffer = Buffer(self._data_dir)
            return self._buffer

    def made(self) -> Buffer:
        """Return the buffer; make it where there is none. Raises StorageError."""
        with self._opening:
            if self._buffer is None:
                self._buffer = Buffer(self._data_dir)
            return self._buffer

    def close(self) -> None:
        """Close it."""
        with self._opening:
            if self._buffer is not None:
                self._buffer.close()
            self._buffer = None


class Audit:
    """Writes rows of the audit chain, each on disk when awaited."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def __call__(self, who: str, action: str, detail: str = "") -> None:
        """Note that `who` did `action`, on a thread of its own. Raises StorageError: then do not do it, or say so."""
        await asyncio.to_thread(write, self._store, who, action, detail)


def write(store: Store, who: str, action: str, detail: str) -> None:
    """Note it now. Raises StorageError."""
    with store.made().database.transaction() as conn:
        audit.append(conn, time.time(), action, who, detail)


def acting(connection: HTTPConnection) -> str:
    """The account of who asks, for `who`. There is one wherever `needs` let a POST through."""
    who = person(connection)
    return who.name if who else ""
