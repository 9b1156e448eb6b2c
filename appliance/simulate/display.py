# SPDX-License-Identifier: Apache-2.0
"""A display: connects to the appliance by OpenIGTLink and notes what came and when."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from appliance.errors import PeerError
from appliance.frames import Array
from appliance.igtl import Image, Message, Status
from appliance.live.igtl_client import Client


@dataclass
class Shown:
    """What the display got. `arrived_ns` (CLOCK_MONOTONIC, last byte) goes by the image's sequence number."""

    arrived_ns: dict[tuple[str, int], int] = field(default_factory=dict)  # (scan id, sequence)
    newest: Array | None = None
    n_images: int = 0
    statuses: list[str] = field(default_factory=list)  # names, each change once
    lost: str = ""  # why the connection was lost first, if not by us


class Display:
    """Reads on the client's thread until closed. Ask the appliance for protocol 3, or there are no numbers."""

    def __init__(self, host: str, port: int, *, timeout_s: float = 10.0) -> None:
        self.shown = Shown()
        self._connected, self._state = threading.Event(), ""
        self._client = Client(
            host, port, on_message=self._note, on_state=self._told, wanted=("IMAGE", "STATUS"), silence_s=60.0
        )
        self._client.start()
        if not self._connected.wait(timeout_s):
            self.close()
            raise PeerError(f"display: nobody listens at {host}:{port}: {self._state}; start the appliance")

    def _told(self, state: str) -> None:
        self._state = state
        if state == "connected":
            self._connected.set()
        elif self._connected.is_set() and not self.shown.lost:
            self.shown.lost = state

    def _note(self, message: Message, received_ns: int) -> None:
        content = message.content
        if isinstance(content, Image):
            self.shown.n_images += 1
            self.shown.newest = content.array
            if "sequence" in message.metadata:
                self.shown.arrived_ns[message.metadata["scan_id"], int(message.metadata["sequence"])] = received_ns
        elif isinstance(content, Status) and self.shown.statuses[-1:] != [content.name]:
            self.shown.statuses.append(content.name)

    def close(self) -> None:
        """Hang up."""
        self._client.close()
