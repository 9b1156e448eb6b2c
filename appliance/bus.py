# SPDX-License-Identifier: Apache-2.0
"""The live bus: what may be dropped, between the processes of this box.

Rule: nothing that must not be lost travels here. ZeroMQ PUB/SUB over ``ipc://``, one socket file for each
(process, topic), high-water mark of one: a slow reader misses messages, a writer never waits.
Processes are named "daemon", "deliverer", "receiver", "console" and "pipeline-NAME"; topics are "status"
(a JSON object, about once a second), "preview" (a JSON object and pixels) and "volume" (imaging/volume_message.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zmq

from appliance.errors import ConfigError

_LONGEST_SOCKET_PATH = 107  # sockaddr_un.sun_path less its NUL, unix(7)


def _endpoint(run_dir: Path, process: str, topic: str) -> str:
    path = str(run_dir / f"{process}.{topic}")
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise ConfigError(
            f"bus: socket path has {len(path.encode())} bytes, at most {_LONGEST_SOCKET_PATH} work: {path!r}; "
            "set site.run_dir to a shorter folder"
        )
    return f"ipc://{path}"


def check_run_dir(run_dir: Path, processes: Iterable[str]) -> None:
    """Raise ConfigError when `run_dir` is too long for a socket of one of `processes`."""
    for process in processes:
        _endpoint(run_dir, process, "preview")


class Publisher:
    """Write side of one topic of one process. Use it from one thread."""

    def __init__(self, run_dir: Path, process: str, topic: str) -> None:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        endpoint = _endpoint(run_dir, process, topic)
        self._socket.bind(endpoint)
        os.chmod(endpoint.removeprefix("ipc://"), 0o660)
        self._name = f"{process}.{topic}".encode()

    def publish(self, header: dict[str, Any], payload: Any = b"") -> None:
        """Send to whoever listens and is not behind; returns at once. `payload` is bytes or a C-contiguous array, which
        nobody may write any more: a large one is not copied, for a copy of a volume would hold the GIL for it."""
        self._socket.send_multipart([self._name, json.dumps(header).encode(), payload], copy=False)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Subscriber:
    """Read side of any number of (process, topic); they may come and go. Use it from one thread."""

    def __init__(self, run_dir: Path, topics: Iterable[tuple[str, str]]) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        for process, topic in topics:
            self._socket.connect(_endpoint(run_dir, process, topic))

    def receive(self, timeout_s: float) -> tuple[str, str, dict[str, Any], bytes] | None:
        """Return (process, topic, header, payload), or None when nothing came within `timeout_s`."""
        found = self.receive_view(timeout_s)
        return None if found is None else (*found[:3], bytes(found[3]))

    def receive_view(self, timeout_s: float) -> tuple[str, str, dict[str, Any], memoryview] | None:
        """As `receive`, but the payload is a view of what ZeroMQ received: copying a volume would hold the GIL."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return None
        name, header, payload = (frame.buffer for frame in self._socket.recv_multipart(copy=False))
        process, _, topic = bytes(name).decode().rpartition(".")
        return process, topic, json.loads(bytes(header)), payload

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
