# SPDX-License-Identifier: Apache-2.0
"""Runs the DICOMweb service in a thread of the receiver process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import uvicorn

from appliance.buffer import Buffer
from appliance.dicom.web.app import DicomWeb, read_token
from appliance.http_deadline import MOST_CONNECTIONS, BoundedListener, UploadProtocol
from appliance.settings import ListenDicomweb
from appliance.tls import server_context

_STOP_S = 5.0
_HEAD_BYTES = 16_384


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals belong to the child process


class WebServer:
    """Listens from the constructor on. Raises OSError, ConfigError."""

    def __init__(
        self, settings: ListenDicomweb, buffer: Buffer, told: Callable[[str], None], index: Callable[[], object]
    ) -> None:
        if settings.token_file is not None:
            read_token(settings.token_file)
        self._web = DicomWeb(settings, buffer, told, index)
        config = uvicorn.Config(
            self._web.app(),
            http=UploadProtocol,
            ws="none",
            h11_max_incomplete_event_size=_HEAD_BYTES,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=2,
            server_header=False,
            access_log=False,
            log_config=None,
        )
        config.load()
        if settings.tls:
            config.ssl = server_context(settings.tls, "listen.dicomweb.tls")
        family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
        self._listener = BoundedListener.of(socket.create_server((settings.bind, settings.port), family=family))
        self.port = int(self._listener.getsockname()[1])
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="dicomweb", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._listener]))

    def status(self) -> dict[str, Any]:
        """Plain values."""
        n_connections = len(self._server.server_state.connections)
        return {
            "port": self.port,
            "connections": n_connections,
            "requests": self._web.n_requests,
            "uploads": self._web.n_uploads,
        }

    def close(self) -> None:
        """Stop; uploads that run are cut, and nothing is kept of the part that was on its way."""
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        self._listener.close()
