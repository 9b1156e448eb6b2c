# SPDX-License-Identifier: Apache-2.0
"""What the WebSockets of pages have in common: talking both ways until the page leaves, framing, and the clock.

To the page: binary messages (length of the header as little-endian u32, header JSON, bytes), and
``{"pong": t, "now_ns": n}`` for each ``{"ping": t}``, from which it learns how far its clock is from ours.
"""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

POLICY, WRONG_DATA, TRY_LATER = 1008, 1007, 1013  # RFC 6455 section 7.4.1 and the IANA registry


def framed(header: Mapping[str, Any], body: bytes) -> bytes:
    """Return one message to a page, with the time at which it goes."""
    said = json.dumps({**header, "sent_ns": time.monotonic_ns()}).encode()
    return struct.pack("<I", len(said)) + said + body


async def talk(
    websocket: WebSocket, send: Coroutine[Any, Any, None], hear: Callable[[dict[str, Any]], None], words: str
) -> None:
    """Run `send`, and call `hear` with what the page says, until the page leaves or says what it never would.

    `words` are those that our page says, for the one that is none; at other ones `hear` raises what Python does.
    """
    tasks = [asyncio.create_task(send), asyncio.create_task(_listen(websocket, hear))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except WebSocketDisconnect:
        pass
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # not what our page says
        await websocket.close(WRONG_DATA, f"expected a JSON object with {words}")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(websocket: WebSocket, hear: Callable[[dict[str, Any]], None]) -> None:
    async for text in websocket.iter_text():
        said = json.loads(text)
        if not isinstance(said, dict):
            raise TypeError(f"page socket: expected a JSON object, got {type(said).__name__}")
        hear(said)
        if "ping" in said:
            await websocket.send_json({"pong": float(said["ping"]), "now_ns": time.monotonic_ns()})
