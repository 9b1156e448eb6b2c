# SPDX-License-Identifier: Apache-2.0
"""Runs the DICOMweb service in a thread of the receiver process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

from appliance.buffer import Buffer
from appliance.dicom.web.app import DicomWeb, read_token
from appliance.http_deadline import BoundedListener, Loop, Server, UploadProtocol, server_config
from appliance.settings import ListenDicomweb
from appliance.tls import server_context

_STOP_S = 5.0


class WebServer:
    """Listens from the constructor on. Raises OSError, ConfigError."""

    def __init__(
        self, settings: ListenDicomweb, buffer: Buffer, told: Callable[[str], None], index: Callable[[], object]
    ) -> None:
        if settings.token_file is not None:
            read_token(settings.token_file)
        self._web = DicomWeb(settings, buffer, told, index)
        config = server_config(self._web.app(), UploadProtocol, ws="none")
        if settings.tls:
            config.ssl = server_context(settings.tls, "listen.dicomweb.tls")
        family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
        self._listener = BoundedListener.of(socket.create_server((settings.bind, settings.port), family=family))
        self.port = int(self._listener.getsockname()[1])
        self._server = Server(config)
        self._thread = threading.Thread(target=self._run, name="dicomweb", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(self._server.serve([self._listener]))

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
