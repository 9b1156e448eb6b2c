# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 with deadlines: alone it would wait for ever for a request that does not come or does not end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # a request, or a new connection's first one, must be here within this
UPLOAD_S = 30.0  # so many more bytes of a body must be here within this
UPLOAD_BYTES = 1 << 16
MOST_WAITING = 256  # connections on which no request is; the oldest gives way
MOST_OF_ADDRESS, MOST_CONNECTIONS = 2 * MOST_WAITING, 4 * MOST_WAITING
UNREAD_MS = 60_000  # a peer that takes nothing of an answer for so long is hung up on
_HEAD_BYTES = 16_384


class Server(uvicorn.Server):
    """Leaves signals to the process that it is a part of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Loop(asyncio.SelectorEventLoop):
    """uvicorn does not say how long a TLS handshake may take; a minute is asyncio's own patience."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:  # type: ignore[override]
        if kwargs.get("ssl"):
            kwargs["ssl_handshake_timeout"] = REQUEST_S
        return await super().create_server(*args, **kwargs)


def server_config(app: Any, protocol: type[H11Protocol], **own: Any) -> uvicorn.Config:
    """Return what every server of ours has, and `own`; loaded."""
    config = uvicorn.Config(
        app,
        http=protocol,
        proxy_headers=False,  # an address in a header is anybody's word
        h11_max_incomplete_event_size=_HEAD_BYTES,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        server_header=False,
        access_log=False,
        log_config=None,
        **own,
    )
    config.load()
    return config


class BoundedListener(socket.socket):
    """A listening socket that hangs up on more connections than are good for this machine, before anything is spent on
    them: a TLS handshake that does not end takes 300 kB, and uvicorn sees a connection only after it."""

    _open: list[tuple[socket.socket, str]]

    @classmethod
    def of(cls, listener: socket.socket) -> BoundedListener:
        """Take the place of `listener`."""
        bounded = cls(fileno=listener.detach())
        bounded._open = []
        return bounded

    def accept(self) -> tuple[socket.socket, Any]:
        """As of a socket. Raises ConnectionAbortedError, after which asyncio takes the next."""
        connection, address = super().accept()
        self._open = [one for one in self._open if one[0].fileno() >= 0]
        n_same = sum(host == address[0] for _, host in self._open)
        if len(self._open) >= MOST_CONNECTIONS or n_same >= MOST_OF_ADDRESS:
            connection.close()
            raise ConnectionAbortedError(f"{len(self._open)} connections are open, {n_same} of this address")
        self._open.append((connection, address[0]))
        return connection, address


class ImpatientProtocol(H11Protocol):
    """A request is here whole within `REQUEST_S`, or the connection is closed. Connections that ask for nothing keep
    nobody out."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(REQUEST_S)
        self.since = time.monotonic()
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        # asyncio does so only for sockets made with IPPROTO_TCP, which those of a listener of create_server are not:
        # head and body are two writes, and the second would wait 40 ms for the other side's acknowledgement
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = [one for one in self.connections if isinstance(one, ImpatientProtocol) and one.is_waiting]
        if len(waiting) > MOST_WAITING:
            min(waiting, key=lambda one: one.since).transport.close()

    @property
    def is_waiting(self) -> bool:
        """Whether there is no request on this connection, which is not on its way out already."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._expect(REQUEST_S)
        super().data_received(data)
        self.since = time.monotonic()
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            self._done()  # the request is here whole; the answer may take its time

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._done()
        super().handle_websocket_upgrade(event)

    def _expect(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self.transport.close()

    def _done(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class UploadProtocol(ImpatientProtocol):
    """The head of a request is here within `REQUEST_S`; a body may go on as long as it does, and not by trickling."""

    _body_of: Any = None  # the request whose body is on its way
    _n_bytes = 0  # of it, since the deadline was set

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is None or self.cycle is None or not self.cycle.more_body:
            return
        self._n_bytes += len(data)
        if self.cycle is not self._body_of or self._n_bytes >= UPLOAD_BYTES:
            self._body_of, self._n_bytes = self.cycle, 0
            self._done()
            self._expect(UPLOAD_S)

    def _late(self) -> None:
        if self.flow.read_paused:  # it is our disk that is slow
            self._expect(UPLOAD_S)
        else:
            self.transport.close()
