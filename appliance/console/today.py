# SPDX-License-Identifier: Apache-2.0
"""The view Today: scans and series of the last 24 hours, their states, images and steps.

Rule: who was scanned goes out in answers alone, never into an address or a log; so a search is a POST.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.buffer import today
from appliance.console.answers import number, posted
from appliance.console.audit import Store
from appliance.console.images import Images
from appliance.console.roles import needs
from appliance.settings import Model

_WINDOW_S = 24 * 3600.0
_KEPT_S = 1.0  # an answer serves everybody who asks within this, or within …
_KEPT_TIMES = 10  # … so many times what it took: a day of 150,000 images takes half a second


class _Search(Model):
    text: str = Field(max_length=100)


class Today:
    """Reads the buffer, one question at a time, off the event loop."""

    def __init__(self, store: Store) -> None:
        self._store, self._images = store, Images(store)
        self._reading = asyncio.Lock()
        self._newest: list[dict[str, Any]] = []
        self._good_until = 0.0

    def routes(self) -> list[Route]:
        """Return the addresses."""
        return [
            Route("/api/today", needs("viewer", self._list)),
            Route("/api/today/search", needs("viewer", self._search), methods=["POST"]),
            Route("/api/today/{kind}/{id:int}", needs("viewer", self._one)),
            Route("/api/images/{id:int}", needs("viewer", self._images.show)),
        ]

    def close(self) -> None:
        """End the decoder."""
        self._images.close()

    async def _list(self, _: Request) -> Response:
        async with self._reading:
            began = time.monotonic()
            if began >= self._good_until:
                self._newest = await asyncio.to_thread(self._entries, "")
                took = time.monotonic() - began
                self._good_until = began + max(_KEPT_S, _KEPT_TIMES * took)
        return _answer(self._newest)

    async def _search(self, request: Request) -> Response:
        text = (await posted(request, _Search)).text
        async with self._reading:
            return _answer(await asyncio.to_thread(self._entries, text))

    async def _one(self, request: Request) -> Response:
        kind, row_id = request.path_params["kind"], int(request.path_params["id"])
        offset = number(request, "offset", 0, 0, 1_000_000)
        found = await asyncio.to_thread(self._entry, kind, row_id, offset) if kind in ("series", "scan") else None
        if found is None:
            raise HTTPException(404, "today: there is no such scan or series; it may have been forgotten")
        return JSONResponse(found)

    def _entries(self, text: str) -> list[dict[str, Any]]:
        buffer = self._store.existing()
        return [] if buffer is None else today.entries(buffer.database, time.time() - _WINDOW_S, text)

    def _entry(self, kind: today.Kind, row_id: int, offset: int) -> dict[str, Any] | None:
        buffer = self._store.existing()
        found = today.entry(buffer.database, kind, row_id) if buffer else None
        if buffer is None or found is None:
            return None
        steps = today.steps(buffer.database, found["uid"]) if kind == "scan" else []
        return {**found, "steps": steps, "images": today.images(buffer.database, found, offset)}


def _answer(entries: list[dict[str, Any]]) -> Response:
    return JSONResponse({"time_s": time.time(), "entries": entries, "most": today.MOST_ENTRIES})
