# SPDX-License-Identifier: Apache-2.0
"""The alarms that stand, and who has seen them.

One that somebody has seen is listed quietly while it stands with the same words. What is over is forgotten, so that it
is loud when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.buffer.acknowledgements import Acknowledged, acknowledge, acknowledged, forget
from appliance.console.answers import posted
from appliance.console.audit import Store, acting
from appliance.console.newest import Newest
from appliance.console.roles import needs
from appliance.errors import StorageError
from appliance.settings import Model

SILENT = "silent"
_LOOK_EVERY_S = 1.0
_LONGEST = 4096

log = logging.getLogger(__name__)
Name = tuple[str, str]  # process, key


class _Seen(Model):
    process: str = Field(max_length=_LONGEST)
    key: str = Field(max_length=_LONGEST)
    text: str = Field(max_length=_LONGEST)


class Alarms:
    """Belongs to the event loop; the buffer is asked on threads."""

    def __init__(self, store: Store, newest: Newest) -> None:
        self._store, self._newest = store, newest
        self._seen: dict[Name, Acknowledged] | None = None  # None: not read yet
        self._since: dict[Name, tuple[str, float]] = {}  # with which words, since when
        self._over: list[Acknowledged] = []  # forgotten here, and not yet in the buffer

    def routes(self) -> list[Route]:
        """Return the addresses."""
        return [Route("/api/alarms/acknowledge", needs("technologist", self._acknowledge), methods=["POST"])]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the alarms."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()

    def standing(self) -> list[dict[str, Any]]:
        """Return the alarms that stand, the newest first, those that somebody has seen last."""
        found = []
        for (process, key), (text, since_s) in self._look().items():
            seen = (self._seen or {}).get((process, key))
            by = {"person": seen.person, "at_s": seen.at_s} if seen and seen.text == text else None
            found.append({"process": process, "key": key, "text": text, "since_s": since_s, "acknowledged": by})
        return sorted(found, key=lambda alarm: (alarm["acknowledged"] is not None, -alarm["since_s"]))

    def _look(self) -> dict[Name, tuple[str, float]]:
        now, found, heard = time.time(), dict[Name, str](), self._newest.statuses()
        for process, status in heard.items():
            found |= {(process, key): text for key, text in status.get("alarms", {}).items()}
            if status["state"] == SILENT:
                found[process, SILENT] = "gives no sign of life; what is said of it here may be old"
        before = self._since
        self._since = {
            name: before[name] if name in before and before[name][0] == text else (text, now)
            for name, text in found.items()
        }
        for name, seen in list((self._seen or {}).items()):
            if self._seen and name[0] in heard and found.get(name) != seen.text:
                self._over.append(self._seen.pop(name))
        return self._since

    async def _acknowledge(self, request: Request) -> Response:
        wanted = await posted(request, _Seen)
        name = (wanted.process, wanted.key)
        if self._seen is None:
            self._seen = await asyncio.to_thread(self._read)
        if self._look().get(name, ("", 0.0))[0] != wanted.text:
            raise HTTPException(409, "alarm: it is over or says something else by now; read it again")
        seen = Acknowledged(wanted.process, wanted.key, wanted.text, acting(request), time.time())
        await asyncio.to_thread(lambda: acknowledge(self._store.made().database, seen))
        self._seen[name] = seen
        return JSONResponse({"person": seen.person, "at_s": seen.at_s})

    async def _follow(self) -> None:
        while True:
            try:
                if self._seen is None:
                    self._seen = await asyncio.to_thread(self._read)
                self._look()
                if over := list(self._over):
                    await asyncio.to_thread(self._forget, over)
                    del self._over[: len(over)]
            except StorageError as error:
                log.warning("%s", error)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _read(self) -> dict[Name, Acknowledged]:
        buffer = self._store.existing()
        return {(one.process, one.key): one for one in acknowledged(buffer.database)} if buffer else {}

    def _forget(self, over: list[Acknowledged]) -> None:
        forget(self._store.made().database, over)
