# SPDX-License-Identifier: Apache-2.0
"""Connect to an OpenIGTLink server (PLUS, a tracker, another appliance) and stay connected for ever.

One thread reads and calls back on itself: who is slow there slows the peer by TCP's own back-pressure, and no queue
grows. A peer that vanished without a word is found by the kernel's keep-alive, one that is there and says nothing by
its silence.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from appliance.errors import PeerError
from appliance.igtl import Connection, Message, encode
from appliance.igtl.connection import MAX_BODY_BYTES
from appliance.live.recorder import Recorder, Tape

log = logging.getLogger(__name__)

_POLL_S = 0.2  # how soon `close` is noticed
_CONNECT_S = 2.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0  # between attempts, doubled each time: an operator waits for this
_HANG_UP_AFTER = 6  # times `silence_s`: a proxy or tunnel keeps a connection open that leads nowhere any more
_GONE_S = 5  # a peer that acknowledges nothing for so long is gone


class Client:
    """Reads messages from `host`:`port` on a thread of its own.

    Parameters
    ----------
    on_message
        Called with each message and the time of its last byte (CLOCK_MONOTONIC, ns), on the client's thread. Must
        not raise. Matrices are as on the wire (RAS).
    on_state
        Called where the state changes, on the client's thread: "connected", "lost: WHY", "silent: SINCE WHEN". Not
        called again while attempts to connect fail for the same reason.
    wanted
        Message types to decode; None: all that we understand.
    queries
        Sent after each connection (e.g. STT_TDATA to a tracker).
    silence_s
        Without a whole message for so long the peer is called silent; after six times that the connection is given
        up and made anew.
    max_body_bytes
        A longer message is an error of the peer: the connection is lost before any of it is kept.
    recorder
        Is given every byte that comes, each connection on a tape of its own.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        on_message: Callable[[Message, int], None],
        on_state: Callable[[str], None],
        wanted: Collection[str] | None = None,
        queries: Sequence[Message] = (),
        silence_s: float = 5.0,
        max_body_bytes: int = MAX_BODY_BYTES,
        recorder: Recorder | None = None,
    ) -> None:
        self._address, self._peer = (host, port), f"{host}:{port}"
        self._on_message, self._on_state = on_message, on_state
        self._wanted, self._silence_s, self._max_body_bytes = wanted, silence_s, max_body_bytes
        self._queries = b"".join(map(encode, queries))
        self._recorder = recorder
        self._tape: Tape | None = None
        self._halt = threading.Event()
        self._state = ""
        self._n_messages = self._n_skipped = self._n_connections = 0
        self._thread = threading.Thread(target=self._run, name="igtl client", daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Hang up. No callback runs after this returns, unless one of them hangs."""
        self._halt.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_CONNECT_S + 1)

    def status(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "peer": self._peer,
            "state": self._state,
            "connections": self._n_connections,
            "messages": self._n_messages,
            "skipped_messages": self._n_skipped,
        }

    def _run(self) -> None:
        try:
            self._stay_connected()
        finally:
            self._say("ended: an error of our own; restart the pipeline")

    def _stay_connected(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._halt.is_set():
            n_before = self._n_messages
            try:
                with socket.create_connection(self._address, _CONNECT_S) as connected:
                    _prepare(connected)
                    connected.sendall(self._queries)
                    self._n_connections += 1
                    self._say("connected")
                    connected.settimeout(None)  # one system call a read, and the kernel's time-out: see _prepare
                    self._read(connected)
            except (OSError, UnicodeError, PeerError) as error:  # UnicodeError: no name of a host
                self._say(f"lost: {self._peer}: {error}; connecting again")
            # who accepts and hangs up at once is no better than who refuses
            wait_s = _FIRST_WAIT_S if self._n_messages > n_before else min(2 * wait_s, _LONGEST_WAIT_S)
            self._halt.wait(wait_s)

    def _read(self, connected: socket.socket) -> None:
        self._tape = self._recorder.begin(self._peer) if self._recorder else None
        try:
            self._read_to_end(connected)
        finally:
            if self._tape is not None:
                self._tape.close()

    def _read_to_end(self, connected: socket.socket) -> None:
        connection = Connection(self._max_body_bytes, self._wanted)
        heard_s = time.monotonic()
        while not self._halt.is_set():
            try:
                n_bytes = connected.recv_into(room := connection.room())
            except BlockingIOError:  # nothing for _POLL_S
                self._listen(time.monotonic() - heard_s)
                continue
            now_ns = time.monotonic_ns()
            if not n_bytes:
                raise PeerError("the peer hung up")
            if self._tape is not None:
                self._tape.write(room[:n_bytes])
            if events := connection.received(n_bytes):
                heard_s = now_ns / 1e9
                self._say("connected")
                for event in events:
                    self._hand_over(event, now_ns)
                if connection.fault is not None:
                    raise connection.fault
            else:  # pieces of a message that never ends are silence, too
                self._listen(now_ns / 1e9 - heard_s)
            if self._tape is not None and connection.is_between_messages:
                self._tape = self._tape.at_a_boundary()

    def _hand_over(self, event: object, now_ns: int) -> None:
        if isinstance(event, Message):
            self._n_messages += 1
            self._on_message(event, now_ns)
        else:
            self._n_skipped += 1

    def _listen(self, silent_s: float) -> None:
        if silent_s >= _HANG_UP_AFTER * self._silence_s:
            raise PeerError(f"silent for {silent_s:.0f} s")
        if silent_s >= self._silence_s:
            self._say(f"silent: {self._peer}: no whole message for {self._silence_s:g} s; look at the peer")

    def _say(self, state: str) -> None:
        if state == self._state or self._halt.is_set():
            return
        self._state = state
        log.info("igtl client %s: %s", self._peer, state)
        self._on_state(state)


def _prepare(connected: socket.socket) -> None:
    poll = struct.pack("ll", 0, int(_POLL_S * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, poll)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_S * 1000)
