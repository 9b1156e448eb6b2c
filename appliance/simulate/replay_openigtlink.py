# SPDX-License-Identifier: Apache-2.0
"""Replays a recorded OpenIGTLink stream: be the tracker or ultrasound machine to which the appliance connects."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from appliance.errors import PeerError
from appliance.igtl.header import HEADER_BYTES, from_timestamp, read_header, to_timestamp
from appliance.recording import Recording
from appliance.simulate.replay import TIMEOUT_S, Replayed, paced

_STAMP = struct.Struct(">Q")
_STAMP_AT = 34  # after version, type and device name
_LINGER_S = 2.0


class Restamp:
    """Changes the time stamps in the headers of a stream, however it is cut into pieces.

    The checksum goes over the body alone, so nothing else changes. Where the stream is no OpenIGTLink any more, the
    rest passes as it is.
    """

    def __init__(self, change: Callable[[int], int]) -> None:
        self.n_messages = 0  # whole ones
        self._change = change  # ns of UTC to ns of UTC
        self._head = bytearray()
        self._n_body = 0  # bytes to come
        self._is_lost = False

    def feed(self, data: bytes) -> bytes:
        """Return what of the stream is ready: all but a header that has only begun."""
        out, view = bytearray(), memoryview(data)
        while view and not self._is_lost:
            if self._n_body:
                n = min(self._n_body, len(view))
                out += view[:n]
                self._n_body -= n
                self.n_messages += not self._n_body
            else:
                n = HEADER_BYTES - len(self._head)
                self._head += view[:n]
                if len(self._head) == HEADER_BYTES:
                    out += self._take_header()
            view = view[n:]
        return bytes(out + view)

    def rest(self) -> bytes:
        """Return a header that never became whole."""
        return bytes(self._head)

    def _take_header(self) -> bytearray:
        head, self._head = self._head, bytearray()
        try:
            header = read_header(bytes(head))
        except PeerError:
            self._is_lost = True
            return head
        self._n_body = header.body_bytes
        self.n_messages += not self._n_body
        stamp = to_timestamp(self._change(from_timestamp(header.timestamp))) if header.timestamp else 0
        if 0 < stamp < 1 << 64:
            _STAMP.pack_into(head, _STAMP_AT, stamp)
        return head


def replay_openigtlink(
    recording: Recording,
    bind: str,
    port: int,
    speed: float = 1.0,
    keep_times: bool = False,
    on_listening: Callable[[int], None] = lambda port: None,
) -> Replayed:
    """Wait for the appliance or a display to connect, and send it what was recorded.

    Time stamps are moved from the time of the recording to now, their distances divided by `speed`: by old ones the
    appliance would find every pose and image too old. Raises OSError when `port` cannot be listened on.
    """
    with socket.create_server((bind, port), family=socket.AF_INET6 if ":" in bind else socket.AF_INET) as server:
        on_listening(server.getsockname()[1])
        connection, _ = server.accept()
    began_ns, now_ns, slower = recording.header.started_ns, time.time_ns(), 1 / (speed or 1)
    restamp = Restamp(lambda ns: ns if keep_times else now_ns + int((ns - began_ns) * slower))
    result = Replayed()
    with connection:
        connection.settimeout(TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = threading.Thread(target=_read, args=(connection,), name="queries", daemon=True)
        reader.start()
        try:
            for piece in paced(recording, speed, result):
                connection.sendall(restamp.feed(piece.data))
            connection.sendall(restamp.rest())
            connection.shutdown(socket.SHUT_WR)
            result.closed = True
        except OSError as error:
            result.error = f"replay: the appliance hung up or does not read: {error.strerror or error}"
        reader.join(_LINGER_S)  # closing with unread queries would reset the connection, and lose the end
    result.n_messages = restamp.n_messages
    return result


def _read(connection: socket.socket) -> None:
    """Read queries and throw them away; they were answered, or not, when this was recorded."""
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass
