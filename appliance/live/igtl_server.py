# SPDX-License-Identifier: Apache-2.0
"""Serve OpenIGTLink to any number of displays: newest wins, nobody waits for anybody.

One thread encodes each item once and writes to all displays through non-blocking sockets, so an image needs one
thread switch on its way out. Every display has its own slots: what it has not begun to take of a frame when the next
one comes is dropped, and counted, the whole frame with its poses.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from appliance.errors import ConfigError, PeerError
from appliance.igtl import Capability, Connection, Message, Query, Reply, encode
from appliance.igtl.queries import read_pace

log = logging.getLogger(__name__)

Packets = Mapping[str, bytes]  # slot -> wire bytes; a slot is a message type, or one and a name ("TRANSFORM Stylus")
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNSENT_BYTES = 256 << 10  # what the kernel may hold unsent for a display: about two images of 256 x 256
_TURN_BYTES = 1 << 20  # what one display takes before the others have their turn
_QUERY_BYTES = 4096  # read at a time: about 70 queries, answered in a millisecond
_LONGEST_WAIT_S = 0.5
_SHORT_STAY_S = 1.0  # who left sooner is counted, and no line of the journal
_LOG_EVERY_S = 10.0
_OF_FRAMES = ("IMAGE", "TRANSFORM", "TDATA")  # belong to one frame: what was not begun goes when the next one comes
_KEPT = ("STATUS", "STRING")  # the newest is sent to who comes later, and when asked for
_ON_REQUEST = "TDATA"  # only to who sent STT_TDATA: the same is in the TRANSFORMs


def _kind(slot: str) -> str:
    return slot.partition(" ")[0]


class _Display:
    """One connected display."""

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.socket = connection
        self.peer = peer
        self.since_s = time.monotonic()
        self.incoming = Connection(wanted={"GET_", "STT_", "STP_"})
        self.n_sent = self.n_dropped = 0  # images
        self.is_watched = False  # for room to write
        self.began_s = 0.0  # when the message in `_rest` began
        self._stopped = {_ON_REQUEST}
        self._pace_s: dict[str, float] = {}
        self._due_s: dict[str, float] = {}
        self._waiting: dict[str, bytes] = {}
        self._rest = memoryview(b"")
        self._slot = ""

    def start(self, kind: str, pace_s: float) -> None:
        """Send `kind`, at most one in `pace_s`."""
        self._stopped.discard(kind)
        self._pace_s[kind] = pace_s

    def stop(self, kind: str) -> None:
        """Send no more of `kind`."""
        self._stopped.add(kind)

    def post(self, packets: Packets) -> None:
        """Put into the slots, over what was not begun."""
        now_s = time.monotonic()
        for slot, data in packets.items():
            kind = _kind(slot)
            if kind in self._stopped:
                continue
            if pace_s := self._pace_s.get(kind):
                if now_s < self._due_s.get(slot, 0.0):
                    continue
                self._due_s[slot] = now_s + pace_s
            self._waiting.pop(slot, None)
            self._waiting[slot] = data

    def forget_frame(self) -> None:
        """Empty the slots of a frame that is not the newest any more."""
        for slot in [slot for slot in self._waiting if _kind(slot) in _OF_FRAMES]:
            self.n_dropped += slot == "IMAGE"
            del self._waiting[slot]

    def flush(self, now_s: float) -> None:
        """Write what the kernel takes now. Raises OSError when the display is gone."""
        n_bytes = 0
        while (self._rest or self._waiting) and n_bytes < _TURN_BYTES:
            if not self._rest:
                self._slot = next(iter(self._waiting))
                self._rest = memoryview(self._waiting.pop(self._slot))
                self.began_s = now_s
            try:
                n_taken = self.socket.send(self._rest)
            except BlockingIOError:
                return
            n_bytes += n_taken
            self._rest = self._rest[n_taken:]
            if not self._rest and self._slot == "IMAGE":
                self.n_sent += 1

    @property
    def is_behind(self) -> bool:
        """Whether anything is left to send."""
        return bool(self._rest or self._waiting)

    def is_stuck(self, now_s: float, limit_s: float) -> bool:
        """Whether a message was begun so long ago and is still not taken whole."""
        return bool(self._rest) and now_s - self.began_s > limit_s


class DisplayServer:
    """Listens, and sends what `encode_item` and `idle` give to every display.

    Parameters
    ----------
    encode_item
        Called on the server's thread with the newest item of `put`.
    idle
        Called on the server's thread after every event; returns messages to send and the seconds until it wants
        to be called again.
    types
        The message types that it may send, for CAPABILITY and queries.
    allow
        Networks whose addresses are let in. Empty: everybody who reaches the address.

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
        *,
        types: Sequence[str] = ("IMAGE", "STATUS", "STRING"),
        allow: Sequence[Network] = (),
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
        self._types, self._allow = (*types, "CAPABILITY"), tuple(allow)
        self._lock = threading.Lock()
        self._slot: Any = None
        self._last: dict[str, bytes] = {}  # newest STATUS and STRING, for who comes later
        self._displays: dict[int, _Display] = {}
        self._n_connections = self._n_overwritten = self._n_stuck = self._n_refused = 0
        self._refusal_s = -_LOG_EVERY_S  # when one was last logged
        self._farewell: Packets = {}
        self._closing = False
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._listener.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(self._listener, select.EPOLLIN)
        self._epoll.register(self._wake_fd, select.EPOLLIN | select.EPOLLET)  # each write wakes; it is never read
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

    def forget_frame(self) -> None:
        """Send nothing more of the last item to who has not begun to take it. From `idle` only."""
        for display in self._displays.values():
            if display.is_behind:
                display.forget_frame()

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
            "connections": self._n_connections,
            "dropped_displays": self._n_stuck,
            "refused_displays": self._n_refused,
            "overwritten": self._n_overwritten,
        }

    def _run(self) -> None:
        try:
            self._serve_all()
        finally:  # also after an error of our own: nobody is left looking at an image that nobody calls old any more
            self._hang_up()

    def _serve_all(self) -> None:
        wait_s = 0.0
        while not self._closing:
            for fd, events in self._epoll.poll(max(0.0, min(wait_s, _LONGEST_WAIT_S))):
                if fd != self._wake_fd:
                    self._serve(fd, events)
            with self._lock:
                item, self._slot = self._slot, None
            if item is not None:
                packets = self._encode_item(item)
                self.forget_frame()
                self._post(packets)
            packets, wait_s = self._idle()
            self._post(packets)
            self._drop_stuck(time.monotonic())
        self._post(self._farewell)

    def _serve(self, fd: int, events: int) -> None:
        if fd == self._listener.fileno():
            self._accept()
        elif (display := self._displays.get(fd)) is not None:
            if events & ~select.EPOLLOUT:  # to read, or gone
                self._read(display)
            if events & select.EPOLLOUT and fd in self._displays:
                self._flush(display)

    def _accept(self) -> None:
        try:
            connection, address = self._listener.accept()
        except OSError:  # it hung up before we came to it
            return
        peer = f"{address[0]}:{address[1]}"
        if refusal := self._refusal(address[0]):
            self._n_refused += 1
            if time.monotonic() - self._refusal_s > _LOG_EVERY_S:
                self._refusal_s = time.monotonic()
                log.warning("openigtlink %s: refused, %s", peer, refusal)
            connection.close()
            return
        self._n_connections += 1
        try:
            _prepare(connection, self._send_timeout_s)
        except OSError:  # gone already
            connection.close()
            return
        display = self._displays[connection.fileno()] = _Display(connection, peer)
        self._epoll.register(connection, select.EPOLLIN)
        display.post(self._last)
        self._flush(display)

    def _refusal(self, host: str) -> str:
        address = ipaddress.ip_address(host.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if self._allow and not any(address in network for network in self._allow):
            return "its address is not in `allow`"
        full = len(self._displays) >= self._max_displays
        return f"{len(self._displays)} displays are connected" if full else ""

    def _read(self, display: _Display) -> None:
        try:
            data = display.socket.recv(_QUERY_BYTES)
            if not data:
                return self._drop(display, "hung up")
            for event in display.incoming.receive(data):
                if isinstance(event, Message) and isinstance(event.content, Query):
                    display.post(self._answer(display, event.content))
                    display.flush(time.monotonic())
            if display.incoming.fault is not None:
                raise display.incoming.fault
            self._flush(display)
        except BlockingIOError:
            return
        except (OSError, PeerError) as error:
            self._drop(display, str(error))

    def _answer(self, display: _Display, query: Query) -> Packets:
        kind = next((kind for kind in self._types if query.type and kind.startswith(query.type)), "")
        if query.action == "GET":
            return self._newest(kind)
        if kind in _OF_FRAMES and query.action == "STT":
            display.start(kind, read_pace(query).resolution_ms / 1000)
        elif kind in _OF_FRAMES:
            display.stop(kind)
        return {"RTS": encode(Message(Reply(query.type, kind in _OF_FRAMES), "nearscan"))}

    def _newest(self, kind: str) -> Packets:
        """What a GET_ of `kind` brings: images and poses come by themselves and are never repeated; then the STATUS."""
        if kind == "CAPABILITY":
            queries = ("GET_CAPABIL", "GET_STATUS", "GET_STRING")
            of_frames = [kind for kind in self._types if kind in _OF_FRAMES]
            starts = [f"{action}_{kind}"[:12] for kind in of_frames for action in ("STT", "STP")]
            return {"CAPABILITY": encode(Message(Capability((*self._types, *queries, *starts)), "nearscan"))}
        kind = kind if kind in self._last else "STATUS"
        return {kind: self._last[kind]} if kind in self._last else {}

    def _post(self, packets: Packets) -> None:
        if not packets:
            return
        self._last.update({slot: data for slot, data in packets.items() if slot in _KEPT})
        for display in list(self._displays.values()):
            display.post(packets)
            self._flush(display)

    def _flush(self, display: _Display) -> None:
        try:
            display.flush(time.monotonic())
        except OSError as error:
            return self._drop(display, str(error))
        if display.is_behind != display.is_watched:
            display.is_watched = display.is_behind
            self._epoll.modify(display.socket, select.EPOLLIN | (select.EPOLLOUT if display.is_behind else 0))

    def _drop_stuck(self, now_s: float) -> None:
        for display in list(self._displays.values()):
            if display.is_stuck(now_s, self._send_timeout_s):
                self._n_stuck += 1
                self._drop(display, f"took no whole message for {self._send_timeout_s:g} s; dropped")

    def _drop(self, display: _Display, reason: str) -> None:
        stayed = time.monotonic() - display.since_s > _SHORT_STAY_S
        log.log(
            logging.INFO if stayed else logging.DEBUG,
            "openigtlink %s: %s (%d images)",
            display.peer,
            reason,
            display.n_sent,
        )
        self._epoll.unregister(display.socket)
        del self._displays[display.socket.fileno()]
        display.socket.close()

    def _hang_up(self) -> None:
        for display in list(self._displays.values()):
            self._drop(display, "we hang up")
        self._epoll.close()
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
