# SPDX-License-Identifier: Apache-2.0
"""The WebSocket of one page: previews, newest only, each page at its own pace.

To the page (page_socket.py): a header and grey bytes. From the page: ``{"seen": true}`` for every preview drawn. At
most two previews are on their way, so a slow line shows fewer images, not old ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.websockets import WebSocket

from appliance.console.newest import Newest
from appliance.console.page_socket import POLICY, framed, talk

_ON_THE_WAY = 2


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
        try:
            await talk(self._websocket, self._send(), self._hear, "seen or ping")
        finally:
            self._newest.unwatch(self._pipeline, self._changed)

    async def _send(self) -> None:
        while True:
            preview = self._newest.previews.get(self._pipeline)
            if preview is None or preview.number == self._shown or self._n_unseen >= _ON_THE_WAY:
                self._changed.clear()
                await self._changed.wait()
                continue
            self._shown = preview.number
            self._n_unseen += 1
            await self._websocket.send_bytes(framed(preview.header, preview.pixels))

    def _hear(self, said: dict[str, Any]) -> None:
        if said.get("seen"):
            self._n_unseen = max(0, self._n_unseen - 1)
            self._changed.set()


async def refuse(websocket: WebSocket, reason: str) -> None:
    """End the handshake."""
    await websocket.close(POLICY, reason)
