# SPDX-License-Identifier: Apache-2.0
"""The console process. It binds to 127.0.0.1 unless the site says otherwise, and then serves TLS unless the site says
otherwise once more: passwords and images go over that network."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, Protocol

from appliance.console.app import Console
from appliance.console.guard import our_names
from appliance.errors import ConfigError
from appliance.http_deadline import BoundedListener, ImpatientProtocol, Loop, Server, server_config
from appliance.settings import Console as ConsoleSettings
from appliance.settings import Settings
from appliance.tls import server_context


class Process(Protocol):
    """What the console needs of the child process it runs in."""

    stopping: threading.Event

    def serve(self, status: Callable[[], dict[str, Any]]) -> None: ...

    def alarm(self, key: str, text: str) -> None: ...


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
        with asyncio.Runner(loop_factory=Loop) as runner:
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
    config = server_config(
        console.app(),
        ImpatientProtocol,
        ws="websockets-sansio",
        ws_max_size=4096,
        ws_ping_interval=5,
        ws_ping_timeout=5,
        ws_per_message_deflate=False,  # a local line is faster than the compressor
    )
    config.ssl = tls
    server = Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    while not stopping.is_set() and not serving.done():
        await asyncio.sleep(0.1)
    server.should_exit = True
    await serving
