# SPDX-License-Identifier: Apache-2.0
"""Serve OpenIGTLink to any number of displays: newest wins, nobody waits for anybody.

One thread encodes each item once and writes to all displays through non-blocking sockets, so an image needs one
thread switch on its way out. Every display has its own slots, one for each message type: what it has not begun
to take when the next one comes is dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from appliance.errors import ConfigError, PeerError
from appliance.igtl import Capability, Connection, Message, Query, encode

log = logging.getLogger(__name__)

Packets = Mapping[str, bytes]  # message type -> wire bytes

_UNSENT_BYTES = 256 << 10  # what the kernel may hold unsent for a display: about two images of 256 x 256
_MAX_QUERY_BYTES = 64 << 10  # displays send us queries; what else they send is counted through unread
_LONGEST_WAIT_S = 0.5


class _Display:
    """One connected display."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.socket = connection
        self.peer = peer
        self.incoming = Connection(_MAX_QUERY_BYTES, wanted={"GET_CAPABIL", "GET_STATUS"})
        self.n_sent = self.n_dropped = 0  # images
        self.began_s = 0.0  # when the message in `_rest` began
        self._waiting: dict[str, bytes] = {}
        self._rest = memoryview(b"")
        self._kind = ""

    def post(self, packets: Packets) -> None:
        """Put into the slots, over what was not begun."""
        for kind, data in packets.items():
            if self._waiting.pop(kind, None) is not None and kind == "IMAGE":
                self.n_dropped += 1
            self._waiting[kind] = data

    def flush(self, now_s: float) -> None:
        """Write what the kernel takes now. Raises OSError when the display is gone."""
        while self._rest or self._waiting:
            if not self._rest:
                self._kind = next(iter(self._waiting))
                self._rest = memoryview(self._waiting.pop(self._kind))
                self.began_s = now_s
            try:
                self._rest = self._rest[self.socket.send(self._rest) :]
            except BlockingIOError:
                return
            if not self._rest and self._kind == "IMAGE":
                self.n_sent += 1

    @property
    def is_behind(self) -> bool:
        """Whether a message is begun and not yet taken whole."""
        return bool(self._rest)


class DisplayServer:
    """Listens, and sends what `encode_item` and `idle` give to every display.

    Parameters
    ----------
    encode_item
        Called on the server's thread with the newest item of `put`.
    idle
        Called on the server's thread after every event; returns messages to send and the seconds until it wants
        to be called again.

    Raises
    ------
    ConfigError
        The address cannot be listened on.
    """

    def __init__(
        self,
        bind: str,
        port: int,
        encode_item: Callable[[Any], Packets],
        idle: Callable[[], tuple[Packets, float]],
        send_timeout_s: float,
        max_displays: int,
    ) -> None:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        try:
            self._listener = socket.create_server((bind, port), family=family, backlog=128)
        except OSError as error:
            raise ConfigError(
                f"openigtlink: cannot listen on {bind}:{port}: {error}; choose another port or bind address"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._encode_item, self._idle = encode_item, idle
        self._send_timeout_s, self._max_displays = send_timeout_s, max_displays
        self._lock = threading.Lock()
        self._slot: Any = None
        self._last: dict[str, bytes] = {}  # newest of each type but IMAGE, for who comes later
        self._displays: dict[int, _Display] = {}
        self._n_overwritten = self._n_stuck = self._n_refused = 0
        self._farewell: Packets = {}
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="openigtlink", daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        """Take the newest item; returns at once."""
        if not self._thread.is_alive():
            raise RuntimeError("openigtlink: its thread has ended; restart the pipeline")
        with self._lock:
            was_waiting = self._slot is not None
            self._slot = item
        if was_waiting:
            self._n_overwritten += 1
        else:
            self.wake()

    def wake(self) -> None:
        """Have `idle` called now."""
        os.eventfd_write(self._wake_fd, 1)

    def close(self, farewell: Packets, timeout_s: float = 2.0) -> None:
        """Say `farewell` to who reads, and hang up."""
        self._farewell, self._closing = farewell, True
        self.wake()
        self._thread.join(timeout_s)

    def status(self) -> dict[str, Any]:
        """Plain values."""
        displays = [{"peer": d.peer, "sent": d.n_sent, "dropped": d.n_dropped} for d in list(self._displays.values())]
        return {
            "port": self.port,
            "displays": displays,
            "dropped_displays": self._n_stuck,
            "refused_displays": self._n_refused,
            "overwritten": self._n_overwritten,
        }

    def _run(self) -> None:
        wait_s = 0.0
        while not self._closing:
            for key, events in self._selector.select(min(wait_s, _LONGEST_WAIT_S)):
                self._serve(key, events)
            with self._lock:
                item, self._slot = self._slot, None
            if item is not None:
                self._post(self._encode_item(item))
            packets, wait_s = self._idle()
            self._post(packets)
            self._drop_stuck(time.monotonic())
        self._post(self._farewell)
        self._hang_up()

    def _serve(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj == self._wake_fd:
            os.eventfd_read(self._wake_fd)
        elif (display := self._displays.get(key.fd)) is not None:
            if events & selectors.EVENT_READ:
                self._read(display)
            if events & selectors.EVENT_WRITE and key.fd in self._displays:
                self._flush(display)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:  # it hung up before we came to it
            return
        peer = f"{address[0]}:{address[1]}"
        if len(self._displays) >= self._max_displays:
            self._n_refused += 1
            log.warning("openigtlink %s: refused, %d displays are connected", peer, len(self._displays))
            connection.close()
            return
        _prepare(connection, self._send_timeout_s)
        display = self._displays[connection.fileno()] = _Display(connection, peer)
        self._selector.register(connection, selectors.EVENT_READ)
        log.info("openigtlink %s: connected", peer)
        display.post(self._last)
        self._flush(display)

    def _read(self, display: _Display) -> None:
        try:
            data = display.socket.recv(65536)
            if not data:
                return self._drop(display, "hung up")
            for event in display.incoming.receive(data):
                if isinstance(event, Message) and isinstance(event.content, Query):
                    display.post(self._answer(event.content))
            self._flush(display)
        except BlockingIOError:
            return
        except (OSError, PeerError) as error:
            self._drop(display, str(error))

    def _answer(self, query: Query) -> Packets:
        if query.type == "CAPABIL":
            types = ("IMAGE", "STATUS", "STRING", "CAPABILITY", "GET_CAPABIL", "GET_STATUS")
            return {"CAPABILITY": encode(Message(Capability(types), "nearscan"))}
        return {"STATUS": self._last["STATUS"]} if "STATUS" in self._last else {}

    def _post(self, packets: Packets) -> None:
        if not packets:
            return
        self._last.update({kind: data for kind, data in packets.items() if not kind.startswith("IMAGE")})
        for display in list(self._displays.values()):
            display.post(packets)
            self._flush(display)

    def _flush(self, display: _Display) -> None:
        try:
            display.flush(time.monotonic())
        except OSError as error:
            return self._drop(display, str(error))
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if display.is_behind else 0)
        if self._selector.get_key(display.socket).events != events:
            self._selector.modify(display.socket, events)

    def _drop_stuck(self, now_s: float) -> None:
        for display in list(self._displays.values()):
            if display.is_behind and now_s - display.began_s > self._send_timeout_s:
                self._n_stuck += 1
                self._drop(display, f"took no whole message for {self._send_timeout_s:g} s; dropped")

    def _drop(self, display: _Display, reason: str) -> None:
        log.info("openigtlink %s: %s (%d images sent)", display.peer, reason, display.n_sent)
        self._selector.unregister(display.socket)
        del self._displays[display.socket.fileno()]
        display.socket.close()

    def _hang_up(self) -> None:
        for display in list(self._displays.values()):
            self._drop(display, "we shut down")
        self._selector.close()
        self._listener.close()


def _prepare(connection: socket.socket, send_timeout_s: float) -> None:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
    # A peer that vanished without a word: the keep-alive STATUS stays unacknowledged, and the kernel gives up.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(send_timeout_s * 1000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
