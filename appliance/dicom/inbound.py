# SPDX-License-Identifier: Apache-2.0
"""PDUs from a socket into one buffer that is used again: its size is all that an association costs."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from appliance.dicom.negotiation import LONGEST_PDU
from appliance.errors import PeerError

_HEADER = 6
_CAPACITY = LONGEST_PDU + _HEADER + (1 << 16)  # a PDU and the beginning of the next
_LONGEST = {1: LONGEST_PDU, 4: LONGEST_PDU}  # A-ASSOCIATE-RQ, P-DATA-TF; the others have a few bytes
_LONGEST_OTHER = 1 << 12


class Inbound:
    """Read side of one connection. The views it gives are valid until the next call."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = memoryview(bytearray(_CAPACITY))
        self._start = self._end = self._next = 0

    def next_pdu(self, deadline: float, pdu_s: float = 0.0) -> int:
        """Wait for a PDU; gives its type. It has begun by `deadline` (monotonic), and is whole by then too or, where
        `pdu_s` is given, that long after its first byte. Raises TimeoutError, EOFError, OSError, PeerError."""
        self._start = self._next
        if self._start == self._end:
            self._start = self._end = self._next = 0
        self._need(1, deadline)
        if pdu_s:
            deadline = time.monotonic() + pdu_s
        self._need(_HEADER, deadline)
        kind, length = struct.unpack_from(">BxI", self._buffer, self._start)
        if not 1 <= kind <= 7:
            raise PeerError(f"PDU type 0x{kind:02X} is none")
        if length > _LONGEST.get(kind, _LONGEST_OTHER):
            raise PeerError(f"a PDU of {length} bytes was announced, type 0x{kind:02X}")
        self._need(_HEADER + length, deadline)
        self._next = self._start + _HEADER + length
        return int(kind)

    def discard(self, deadline: float) -> None:
        """Let go by whatever comes: after an error nobody knows where the next PDU begins. Raises EOFError at the end,
        TimeoutError at `deadline`."""
        while True:
            self._start = self._end = self._next = 0
            self._need(1, deadline)

    @property
    def body(self) -> memoryview:
        """The PDU without its header."""
        return self._buffer[self._start + _HEADER : self._next]

    def whole_pdu(self) -> memoryview:
        """The PDU with its header."""
        return self._buffer[self._start : self._next]

    def _need(self, n_bytes: int, deadline: float) -> None:
        if self._start + n_bytes > _CAPACITY:
            n_left = self._end - self._start
            self._buffer[:n_left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, n_left
        while self._end - self._start < n_bytes:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            self._socket.settimeout(remaining)
            n_read = self._socket.recv_into(self._buffer[self._end :])
            if not n_read:
                raise EOFError
            self._end += n_read
            # The kernel leaves quick acknowledgement by itself; without it a peer with Nagle waits 40 ms each time.
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
