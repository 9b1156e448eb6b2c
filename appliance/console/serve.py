# SPDX-License-Identifier: Apache-2.0
"""The console process. It binds to 127.0.0.1 unless the site says otherwise, and then serves TLS unless the site says
otherwise once more: passwords and images go over that network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from typing import Any, Protocol

import uvicorn

from appliance.console.app import Console
from appliance.console.guard import our_names
from appliance.errors import ConfigError
from appliance.http_deadline import MOST_CONNECTIONS, REQUEST_S, BoundedListener, ImpatientProtocol
from appliance.settings import Console as ConsoleSettings
from appliance.settings import Settings
from appliance.tls import server_context


class Process(Protocol):
    """What the console needs of the child process it runs in."""

    stopping: threading.Event

    def serve(self, status: Callable[[], dict[str, Any]]) -> None: ...

    def alarm(self, key: str, text: str) -> None: ...


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals belong to the child process


class _Loop(asyncio.SelectorEventLoop):
    """uvicorn does not say how long a TLS handshake may take; a minute is asyncio's own patience."""

    async def create_server(self, *args: Any, **kwargs: Any) -> asyncio.Server:  # type: ignore[override]
        if kwargs.get("ssl"):
            kwargs["ssl_handshake_timeout"] = REQUEST_S
        return await super().create_server(*args, **kwargs)


def run(settings: Settings, process: Process) -> None:
    """Serve until `process.stopping`. Raises ConfigError when that address cannot or must not be listened on."""
    if settings.console is None:
        raise ConfigError("console: not in the configuration; add 'console: {port: 8080}'")
    if settings.console.exposure:
        raise ConfigError(settings.console.exposure)
    tls = server_context(settings.console.tls, "console.tls") if settings.console.tls else None
    console = Console(settings, process.alarm)
    our_names()  # now, because it may wait for a name server
    with listen(settings.console) as listener:
        port = listener.getsockname()[1]
        process.serve(lambda: {"port": port, **console.state()})
        with asyncio.Runner(loop_factory=_Loop) as runner:
            runner.run(_serve(console, listener, tls, process.stopping))


def listen(console: ConsoleSettings) -> socket.socket:
    """Open the console's socket."""
    bind, port = console.bind, console.port
    try:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        return BoundedListener.of(socket.create_server((bind, port), family=family))
    except OSError as error:
        raise ConfigError(f"console: cannot listen on {bind}:{port}: {error}; choose another port or bind") from error


async def _serve(
    console: Console, listener: socket.socket, tls: ssl.SSLContext | None, stopping: threading.Event
) -> None:
    config = uvicorn.Config(
        console.app(),
        http=ImpatientProtocol,
        ws="websockets-sansio",
        ws_max_size=4096,
        ws_ping_interval=5,
        ws_ping_timeout=5,
        ws_per_message_deflate=False,  # a local line is faster than the compressor
        proxy_headers=False,  # an address in a header is anybody's word
        h11_max_incomplete_event_size=16_384,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        server_header=False,
        access_log=False,
        log_config=None,
    )
    config.load()
    config.ssl = tls
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    while not stopping.is_set() and not serving.done():
        await asyncio.sleep(0.1)
    server.should_exit = True
    await serving
