# SPDX-License-Identifier: Apache-2.0
"""What every request and answer of the console goes through: names we answer to, origins, headers."""

from __future__ import annotations

import ipaddress
import socket
from functools import cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.console.roles import Person

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def is_our_name(host: str) -> bool:
    """Whether a Host header names this box: an address, localhost or the machine's own name.

    Any other name may be a foreign page's own one, pointed at us afterwards (DNS rebinding).
    """
    name = urlsplit(f"//{host}").hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in our_names()
    return True


@cache
def our_names() -> frozenset[str]:
    """This machine's names. The first call may ask a name server."""
    return frozenset(("localhost", socket.gethostname().lower(), socket.getfqdn().lower()))


def is_same_origin(headers: Headers) -> bool:
    """Whether the page that asks is our own. Programs that are no browsers send no origin and may pass."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host", "")


class Guard:
    """ASGI middleware: refuse foreign names and origins, add the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        if is_our_name(headers.get("host", "")) and is_same_origin(headers):
            scope["nearscan.person"] = Person("local", "engineer")
            return await self._app(scope, receive, send_guarded)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "foreign origin"})
        text = "console: this host name or origin is not ours; open the page by this machine's name or address\n"
        await PlainTextResponse(text, 421)(scope, receive, send_guarded)
