# SPDX-License-Identifier: Apache-2.0
"""The console's addresses: the page, /api/status, /healthz, /metrics and /ws/live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from appliance.console.guard import Guard
from appliance.console.live_socket import LiveSocket, refuse
from appliance.console.metrics import write_metrics
from appliance.console.newest import Newest
from appliance.console.roles import needs, person
from appliance.errors import StorageError
from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.buffer import Buffer

STATIC = Path(__file__).parent / "static"
_COUNTS_EVERY_S = 1.0


class Console:
    """Answers from the newest that the bus brought, and from the buffer's counts."""

    def __init__(self, settings: Settings) -> None:
        self.newest = Newest(settings.site.sockets, settings.pipelines)
        self._site = settings.site.name
        self._data_dir = settings.site.data_dir
        self._buffer: Buffer | None = None
        self._counts: dict[str, Any] | None = None
        self._counted_s = -_COUNTS_EVERY_S
        self._counting = asyncio.Lock()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/", self._page),
            Route("/api/me", who_am_i),
            Route("/api/status", needs("viewer", self._status)),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            WebSocketRoute("/ws/live", self._live),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Starlette(routes=routes, middleware=[Middleware(Guard)], lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.newest.start()
        yield
        self.newest.stop()
        if self._buffer is not None:
            self._buffer.close()

    async def _page(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _status(self, _: Request) -> Response:
        return JSONResponse(
            {
                "site": self._site,
                "time_ns": time.time_ns(),
                "pipelines": self.newest.pipelines,
                "processes": self.newest.statuses(),
                "buffer": await self._count(),
            }
        )

    async def _health(self, _: Request) -> Response:
        states = {process: status["state"] for process, status in self.newest.statuses().items()}
        well = bool(states) and not {"failed", "silent"} & set(states.values())
        return JSONResponse({"ok": well, "processes": states}, 200 if well else 503)

    async def _metrics(self, _: Request) -> Response:
        body, kind = write_metrics(self.newest.statuses(), await self._count())
        return Response(body, headers={"content-type": kind})

    async def _live(self, websocket: WebSocket) -> None:
        pipeline = websocket.query_params.get("pipeline", "")
        if pipeline not in self.newest.pipelines:
            return await refuse(websocket, "no such pipeline")
        await LiveSocket(websocket, self.newest, pipeline).serve()

    async def _count(self) -> dict[str, Any] | None:
        """Return the buffer's counts, at most a second old; None while there is no buffer."""
        async with self._counting:
            if time.monotonic() - self._counted_s >= _COUNTS_EVERY_S:
                self._counts = await asyncio.to_thread(self._read_counts)
                self._counted_s = time.monotonic()
        return self._counts

    def _read_counts(self) -> dict[str, Any] | None:
        from appliance.buffer import Buffer

        try:
            if self._buffer is None and (self._data_dir / "nearscan.sqlite").exists():
                self._buffer = Buffer(self._data_dir)
            return self._buffer.counts() if self._buffer is not None else None
        except StorageError as error:
            return {"error": str(error)}


async def who_am_i(request: Request) -> Response:
    """Answer /api/me."""
    who = person(request)
    return JSONResponse({"name": who.name if who else "", "role": who.role if who else "", "csrf": ""})
