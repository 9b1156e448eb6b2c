# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of one page that looks at volumes: pictures of the newest view of the newest volume, at its own pace.

To the page: binary messages (length of the header as little-endian u32, header JSON, an encoded picture or nothing),
and ``{"pong": t, "now_ns": n}``. From the page: ``{"view": {…}}`` (appliance/render/view.py) whenever that changes,
``{"seen": number}`` for every picture drawn, and ``{"ping": t}``. At most two pictures are on their way.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from appliance.console.renderer import MOST_VIEWERS, Renderer
from appliance.console.roles import person
from appliance.console.viewer import Viewer
from appliance.render.view import read_view

_WRONG_DATA, _TRY_LATER = 1007, 1013  # RFC 6455 section 7.4.1 and the IANA registry


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
            return await self._websocket.close(_TRY_LATER, words)
        tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except WebSocketDisconnect:
            pass
        except (ValueError, TypeError, AttributeError, RecursionError):  # not the JSON that our page sends
            await self._websocket.close(_WRONG_DATA, "expected a JSON object with view, seen or ping")
        finally:
            self._renderer.remove(self._viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _deliver(self, header: dict[str, Any], encoded: bytes) -> None:
        """Called on the render thread."""
        said = json.dumps({**header, "sent_ns": time.monotonic_ns()}).encode()
        message = struct.pack("<I", len(said)) + said + encoded
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    async def _send(self) -> None:
        while True:
            await self._websocket.send_bytes(await self._outbox.get())

    async def _listen(self) -> None:
        async for text in self._websocket.iter_text():
            said = json.loads(text)
            if not isinstance(said, dict):
                raise TypeError(f"volume socket: expected a JSON object, got {type(said).__name__}")
            if "view" in said:
                self._viewer.want(read_view(said["view"]))
                self._renderer.wake()
            if "seen" in said:
                self._viewer.seen(int(said["seen"]))
                self._renderer.wake()
            if "ping" in said:
                await self._websocket.send_json({"pong": float(said["ping"]), "now_ns": time.monotonic_ns()})
