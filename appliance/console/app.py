# SPDX-License-Identifier: Apache-2.0
"""The console's addresses: the page, sign-in, status, /healthz, /metrics and /ws/live; each view adds its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from appliance.console.accounts import Accounts, accounts_file
from appliance.console.alarms import Alarms
from appliance.console.answers import refused, unavailable
from appliance.console.audit import Audit, Store
from appliance.console.delivery import Delivery
from appliance.console.guard import Gate, Guard
from appliance.console.live_socket import LiveSocket, refuse
from appliance.console.metrics import write_metrics
from appliance.console.newest import Newest
from appliance.console.renderer import Renderer
from appliance.console.roles import needs
from appliance.console.sign_in import SignIn
from appliance.console.system import System
from appliance.console.today import Today
from appliance.console.volume_socket import VolumeSocket
from appliance.device import choose_device
from appliance.errors import StorageError
from appliance.settings import Console as ConsoleSettings
from appliance.settings import Settings

STATIC = Path(__file__).parent / "static"
_COUNTS_EVERY_S = 1.0


class Console:
    """Answers from the newest that the bus brought, and from the buffer's counts."""

    def __init__(self, settings: Settings, alarm: Callable[[str, str], None]) -> None:
        self.newest = Newest(settings.site.sockets, settings.pipelines)
        self.renderer = Renderer(
            settings.site.sockets, self.newest.pipelines, choose_device(settings.site.device) == "gpu"
        )
        self._site = settings.site.name
        self._store = Store(settings.site.data_dir)
        self.audit = Audit(self._store)
        self._gate = Gate(settings.console or ConsoleSettings())
        accounts = Accounts(accounts_file(settings))
        self._sign_in = SignIn(accounts, self._gate, self.audit, STATIC / "sign_in.html", alarm)
        self._alarms = Alarms(self._store, self.newest)
        self._today = Today(self._store)
        self._views = (self._today, Delivery(self._store, self.newest, settings.destinations), System(settings))
        self._counts: dict[str, Any] | None = None
        self._counted_s = -_COUNTS_EVERY_S
        self._counting = asyncio.Lock()

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/", self._page),
            *self._sign_in.routes(),
            Route("/api/status", needs("viewer", self._status)),
            *self._alarms.routes(),
            *(route for view in self._views for route in view.routes()),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            WebSocketRoute("/ws/live", self._live),
            WebSocketRoute("/ws/volume", self._volume),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, self._gate)],
            exception_handlers={HTTPException: refused, StorageError: unavailable},
            lifespan=self._lifespan,
        )

    def state(self) -> dict[str, Any]:
        """Return what the heartbeat says of the console."""
        return {
            "viewers": self.newest.n_viewers,
            "rendering": self.renderer.status(),
            "alarms": self.renderer.alarms(),
        }

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.newest.start()
        self.renderer.start()
        async with self._sign_in.running(), self._alarms.running():
            yield
        self.newest.stop()
        await asyncio.to_thread(self.renderer.stop)
        await asyncio.to_thread(self._today.close)
        self._store.close()

    async def _page(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def _status(self, _: Request) -> Response:
        return JSONResponse(
            {
                "site": self._site,
                "time_ns": time.time_ns(),
                "pipelines": self.newest.pipelines,
                "processes": self.newest.statuses(),
                "rendering": self.renderer.status(),
                "alarms": self._alarms.standing(),
                "buffer": await self._count(),
            }
        )

    async def _health(self, _: Request) -> Response:
        states = {process: status["state"] for process, status in self.newest.statuses().items()}
        well = bool(states) and not {"failed", "silent"} & set(states.values())
        return JSONResponse({"ok": well, "processes": states}, 200 if well else 503)

    async def _metrics(self, _: Request) -> Response:
        body, kind = write_metrics(self.newest.statuses(), await self._count(), self.renderer.status())
        return Response(body, headers={"content-type": kind})

    async def _live(self, websocket: WebSocket) -> None:
        pipeline = websocket.query_params.get("pipeline", "")
        if pipeline not in self.newest.pipelines:
            return await refuse(websocket, "no such pipeline")
        await LiveSocket(websocket, self.newest, pipeline).serve()

    async def _volume(self, websocket: WebSocket) -> None:
        pipeline = websocket.query_params.get("pipeline", "")
        if pipeline not in self.newest.pipelines:
            return await refuse(websocket, "no such pipeline")
        await VolumeSocket(websocket, self.renderer, pipeline).serve()

    async def _count(self) -> dict[str, Any] | None:
        """Return the buffer's counts, at most a second old; None while there is no buffer."""
        async with self._counting:
            if time.monotonic() - self._counted_s >= _COUNTS_EVERY_S:
                self._counts = await asyncio.to_thread(self._read_counts)
                self._counted_s = time.monotonic()
        return self._counts

    def _read_counts(self) -> dict[str, Any] | None:
        try:
            buffer = self._store.existing()
            return buffer.counts() if buffer is not None else None
        except StorageError as error:
            return {"error": str(error)}
