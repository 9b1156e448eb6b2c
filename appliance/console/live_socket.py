# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of one page: previews, newest only, each page at its own pace.

To the page: binary messages (length of the header as little-endian u32, header JSON, grey bytes), and
``{"pong": t, "now_ns": n}``. From the page: ``{"seen": true}`` for every preview drawn, and ``{"ping": t}``,
from which it learns how far its clock is from ours. At most two previews are on their way, so a slow line
shows fewer images, not old ones.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time

from starlette.websockets import WebSocket, WebSocketDisconnect

from appliance.console.newest import Newest, Preview

_ON_THE_WAY = 2
_POLICY, _WRONG_DATA = 1008, 1007  # RFC 6455 section 7.4.1


class LiveSocket:
    """One page watching one pipeline."""

    def __init__(self, websocket: WebSocket, newest: Newest, pipeline: str) -> None:
        self._websocket, self._newest, self._pipeline = websocket, newest, pipeline
        self._changed = asyncio.Event()
        self._n_unseen = self._shown = 0

    async def serve(self) -> None:
        """Accept, and send until the page leaves."""
        await self._websocket.accept()
        self._newest.watch(self._pipeline, self._changed)
        tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._listen())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except WebSocketDisconnect:
            pass
        except (ValueError, TypeError, AttributeError):  # not the JSON that our page sends
            await self._websocket.close(_WRONG_DATA, "expected a JSON object with seen or ping")
        finally:
            self._newest.unwatch(self._pipeline, self._changed)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            preview = self._newest.previews.get(self._pipeline)
            if preview is None or preview.number == self._shown or self._n_unseen >= _ON_THE_WAY:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._shown = preview.number
            self._n_unseen += 1
            await self._websocket.send_bytes(_pack(preview))

    async def _listen(self) -> None:
        async for text in self._websocket.iter_text():
            said = json.loads(text)
            if said.get("seen"):
                self._n_unseen = max(0, self._n_unseen - 1)
                self._changed.set()
            if "ping" in said:
                await self._websocket.send_json({"pong": float(said["ping"]), "now_ns": time.monotonic_ns()})


async def refuse(websocket: WebSocket, reason: str) -> None:
    """End the handshake."""
    await websocket.close(_POLICY, reason)


def _pack(preview: Preview) -> bytes:
    header = json.dumps({**preview.header, "sent_ns": time.monotonic_ns()}).encode()
    return struct.pack("<I", len(header)) + header + preview.pixels
