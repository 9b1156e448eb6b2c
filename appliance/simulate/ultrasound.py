# SPDX-License-Identifier: Apache-2.0
"""A tracked ultrasound machine to try with: serves images and poses by OpenIGTLink, as PLUS does.

Each picture is one IMAGE, then one TRANSFORM for each tool, all with the same time. A tool that is not seen sends the
identity.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from appliance.igtl import Image, Message, Transform, encode
from appliance.igtl.rigid import RAS_TO_LPS
from appliance.imaging.metaimage import read_metaimage
from appliance.ultrasound import phantom
from appliance.ultrasound.phantom import TrackedPicture

_SEND_S = 2.0
_MISSING_EVERY_S = 10.0


class UltrasoundServer:
    """Listens from the beginning; `send` goes to everybody who is connected. Port 0 takes a free one (`.port`)."""

    def __init__(self, port: int, bind: str = "127.0.0.1") -> None:
        self._listener = socket.create_server((bind, port))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._clients: list[socket.socket] = []
        self.connected = threading.Event()
        threading.Thread(target=self._accept, name="ultrasound server", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.settimeout(_SEND_S)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._clients.append(client)
            self.connected.set()

    def send(self, data: bytes) -> None:
        """Send to all; who does not take it is dropped."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            try:
                client.sendall(data)
            except OSError:
                self._drop(client)

    def hang_up(self) -> None:
        """Drop everybody, and go on listening."""
        with self._lock:
            clients = list(self._clients)
        for client in clients:
            self._drop(client)

    def close(self) -> None:
        """Hang up and stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()

    def _drop(self, client: socket.socket) -> None:
        with self._lock:
            self._clients = [each for each in self._clients if each is not client]
            if not self._clients:
                self.connected.clear()
        client.close()


def file_pictures(file: Path) -> Iterator[TrackedPicture]:
    """Give the pictures of a tracked sequence for ever, forwards and backwards, so that no pose jumps.

    Raises ValueError for a file that is none.
    """
    sequence = read_metaimage(file.read_bytes())
    if sequence.array.dtype != np.uint8:
        raise ValueError(f"{file}: its pixels are {sequence.array.dtype}; a sequence of bytes is taken")
    names, n_frames = sequence.transform_names(), len(sequence.array)
    pictures = [
        TrackedPicture(sequence.array[n], {name: sequence.transform(n, name) for name in names})
        for n in range(n_frames)
    ]
    return itertools.cycle([*pictures, *pictures[-2:0:-1]])


def phantom_pictures(rate_hz: float) -> Iterator[TrackedPicture]:
    """Give the pictures of a sweep over the phantom for ever."""
    return (phantom.picture(n / rate_hz) for n in itertools.count())


def messages(picture: TrackedPicture, time_ns: int, *, skew_ns: int = 0, missing: bool = False) -> Iterator[Message]:
    """Give what PLUS sends of a picture. `skew_ns` is added to the poses' times, `missing` hides all tools."""
    yield Message(Image(picture.array[None], RAS_TO_LPS), "Image_Image", time_ns)
    for name, matrix in picture.transforms.items():
        seen = matrix is not None and not missing
        yield Message(Transform(matrix if seen else np.eye(4)), name, time_ns + skew_ns)  # type: ignore[arg-type]


def stream(
    server: UltrasoundServer,
    pictures: Iterator[TrackedPicture],
    *,
    rate_hz: float,
    stop: threading.Event,
    n_frames: int | None = None,
    skew_ms: float = 0.0,
    missing_s: float = 0.0,
    on_frame: Callable[[int, int], None] = lambda number, time_ns: None,
) -> int:
    """Send at `rate_hz` until `stop` or for `n_frames`; return how many were sent.

    The tools are not seen in the last `missing_s` of every ten seconds. `on_frame` gets the number and the time stamp
    of each picture before it goes.
    """
    begin_s, n = time.monotonic(), 0
    for n, picture in enumerate(pictures):
        if n == n_frames or stop.wait(max(0.0, begin_s + n / rate_hz - time.monotonic())):
            return n
        time_ns = time.time_ns()
        on_frame(n, time_ns)
        missing = (n / rate_hz) % _MISSING_EVERY_S >= _MISSING_EVERY_S - missing_s
        for message in messages(picture, time_ns, skew_ns=int(skew_ms * 1e6), missing=missing):
            server.send(encode(message))
    return n
