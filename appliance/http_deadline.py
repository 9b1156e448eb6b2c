# SPDX-License-Identifier: Apache-2.0
"""uvicorn's HTTP/1.1 with deadlines: alone it would wait for ever for a request that does not come or does not end."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # a request, or a new connection's first one, must be here within this
UPLOAD_S = 30.0  # the next bytes of a body must be here within this


class ImpatientProtocol(H11Protocol):
    """A request is here whole within `REQUEST_S`, or the connection is closed."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(REQUEST_S)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._expect(REQUEST_S)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete:
            self._done()  # the request is here whole; the answer may take its time

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        self._done()
        super().handle_websocket_upgrade(event)

    def _expect(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self.transport.close)

    def _done(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class UploadProtocol(ImpatientProtocol):
    """The head of a request is here within `REQUEST_S`; a body may go on as long as it goes on."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None and self.cycle is not None and self.cycle.more_body:
            self._done()
            self._expect(UPLOAD_S)
