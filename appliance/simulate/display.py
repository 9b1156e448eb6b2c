# SPDX-License-Identifier: Apache-2.0
"""A display: connects to the appliance by OpenIGTLink and notes what came and when."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field

from appliance.errors import PeerError
from appliance.frames import Array
from appliance.igtl import Connection, Image, Status

_POLL_S = 0.2


@dataclass
class Shown:
    """What the display got. `arrived_ns` (CLOCK_MONOTONIC, last byte) goes by the image's sequence number."""

    arrived_ns: dict[tuple[str, int], int] = field(default_factory=dict)  # (scan id, sequence)
    newest: Array | None = None
    n_images: int = 0
    statuses: list[str] = field(default_factory=list)  # names, each change once
    lost: str = ""  # why the connection ended, if not by us


class Display:
    """Reads on a thread of its own until closed. Ask the appliance for protocol 3, or there are no numbers."""

    def __init__(self, host: str, port: int, *, timeout_s: float = 10.0) -> None:
        self.shown = Shown()
        self._halt = threading.Event()
        self._socket = _connect(host, port, timeout_s)
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = Connection(wanted=("IMAGE", "STATUS"))
        while not self._halt.is_set():
            try:
                data = self._socket.recv(1 << 20)
                now_ns = time.monotonic_ns()
                if not data:
                    self.shown.lost = "the appliance hung up"
                    return
                for message in connection.receive(data):
                    self._note(message, now_ns)
            except TimeoutError:
                continue
            except (OSError, PeerError) as error:
                self.shown.lost = str(error)
                return

    def _note(self, message: object, now_ns: int) -> None:
        content = getattr(message, "content", None)
        if isinstance(content, Image):
            metadata = message.metadata  # type: ignore[attr-defined]
            self.shown.n_images += 1
            self.shown.newest = content.array
            if "sequence" in metadata:
                self.shown.arrived_ns[metadata["scan_id"], int(metadata["sequence"])] = now_ns
        elif isinstance(content, Status) and self.shown.statuses[-1:] != [content.name]:
            self.shown.statuses.append(content.name)

    def close(self) -> None:
        """Hang up."""
        self._halt.set()
        self._thread.join(2)
        self._socket.close()


def _connect(host: str, port: int, timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connected = socket.create_connection((host, port), timeout=2.0)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerError(f"display: nobody listens at {host}:{port}: {error}; start the appliance") from error
            time.sleep(0.1)
        else:
            connected.settimeout(_POLL_S)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connected
