# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of one page that looks at volumes: pictures of the newest view of the newest volume, at its own pace.

To the page (page_socket.py): a header and an encoded picture, or nothing. From the page: ``{"view": {…}}``
(appliance/render/view.py) whenever that changes, and ``{"seen": number}`` for every picture drawn. At most two pictures
are on their way.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket

from appliance.console.page_socket import TRY_LATER, framed, talk
from appliance.console.renderer import MOST_VIEWERS, Renderer
from appliance.console.roles import person
from appliance.console.viewer import Viewer
from appliance.render.view import read_view


class VolumeSocket:
    """One page looking at one pipeline's volumes."""

    def __init__(self, websocket: WebSocket, renderer: Renderer, pipeline: str) -> None:
        self._websocket, self._renderer = websocket, renderer
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[bytes] = asyncio.Queue()  # two pictures and a few words at most
        who = person(websocket)
        self._viewer = Viewer(pipeline, who.role if who else "viewer", renderer.kpis, self._deliver)

    async def serve(self) -> None:
        """Accept, and send until the page leaves."""
        await self._websocket.accept()
        if not self._renderer.add(self._viewer):
            words = f"3D: {MOST_VIEWERS} viewers look already; close one"
            return await self._websocket.close(TRY_LATER, words)
        try:
            await talk(self._websocket, self._send(), self._hear, "view, seen or ping")
        finally:
            self._renderer.remove(self._viewer)

    def _deliver(self, header: dict[str, Any], encoded: bytes) -> None:
        """Called on the render thread."""
        message = framed(header, encoded)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    async def _send(self) -> None:
        while True:
            await self._websocket.send_bytes(await self._outbox.get())

    def _hear(self, said: dict[str, Any]) -> None:
        if "view" in said:
            self._viewer.want(read_view(said["view"]))
        if "seen" in said:
            self._viewer.seen(int(said["seen"]))
        self._renderer.wake()
