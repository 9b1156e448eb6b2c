# SPDX-License-Identifier: Apache-2.0
"""What every request, WebSocket and answer of the console goes through: our names, origins, who asks, headers.

Rule: what is not named here as open needs a person. A new route is open to whoever has signed in and, by
`roles.needs`, has the role; to a kiosk only if `KIOSK_MAY` names it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import socket
import time
from functools import cache
from typing import cast
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from appliance.console.roles import Person
from appliance.console.sessions import Session, Sessions
from appliance.settings import Console as Settings

OPEN = frozenset(("/sign-in", "/api/sign-in", "/api/me", "/healthz"))
# The display above the scanner, and a page that nobody has touched for long: the live image and 3D. No lists of
# scans or patients, no configuration, no actions.
KIOSK_MAY = frozenset(("/", "/api/sign-out", "/api/status", "/ws/live", "/ws/volume"))
MOST_BODY_BYTES = 2 << 20  # a configuration to check is the largest

_SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
_HSTS_S = 30 * 86_400  # how long browsers insist on TLS here; a site that gives it up is not locked out for a year
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


@cache
def our_names() -> frozenset[str]:
    """This machine's names. The first call may ask a name server."""
    return frozenset(("localhost", socket.gethostname().lower(), socket.getfqdn().lower()))


def is_same_origin(headers: Headers, scheme: str) -> bool:
    """Whether the page that asks is our own. Programs that are no browsers send no origin and may pass."""
    origin = headers.get("origin")
    if origin is None:
        return True
    from_where = urlsplit(origin)
    is_tls = scheme in ("https", "wss")
    return from_where.netloc == headers.get("host", "") and from_where.scheme == ("https" if is_tls else "http")


def address_of(scope: Scope) -> str:
    """Who calls, from the socket alone: headers such as X-Forwarded-For are anybody's word."""
    client = scope["client"]  # None: it hung up before it was asked
    return str(client[0]) if client else "0.0.0.0"


def session_of(connection: HTTPConnection) -> Session | None:
    """Return the session of who asks."""
    return cast("Session | None", connection.scope.get("nearscan.session"))


class Gate:
    """Who may come in: sessions, kiosks, names."""

    def __init__(self, settings: Settings) -> None:
        self.sessions = Sessions(settings.idle_minutes * 60, settings.session_h * 3600)
        self.is_tls = settings.tls is not None
        # Browsers keep one cookie for all ports of a host; __Host- has no neighbour or plain page set it (RFC 6265bis).
        self._cookie = f"{'__Host-' if self.is_tls else ''}nearscan-{settings.port}"
        self._names = frozenset(name.lower() for name in settings.names)
        self._kiosk = [ipaddress.ip_network(one) for one in settings.kiosk]
        self._metrics = [ipaddress.ip_network(one) for one in settings.metrics]

    def is_our_name(self, host: str) -> bool:
        """Whether a Host header names this box: an address, localhost, the machine's own name or one of the site's.

        Any other name may be a foreign page's own one, pointed at us afterwards (DNS rebinding).
        """
        with contextlib.suppress(ValueError):
            name = urlsplit(f"//{host}").hostname or ""
            if name in our_names() or name in self._names:
                return True
            ipaddress.ip_address(name)
            return True
        return False

    def session(self, headers: Headers) -> Session | None:
        """Return the session whose token comes with a request."""
        token = cookie_parser(headers.get("cookie", "")).get(self._cookie)
        return self.sessions.find(token) if token else None

    def set_cookie(self, answer: Response, token: str | None) -> None:
        """Have the browser keep a session's token until it is closed, or forget it."""
        answer.set_cookie(
            self._cookie,
            token or "",
            max_age=None if token else 0,
            path="/",
            secure=self.is_tls,
            httponly=True,
            samesite="strict",
        )

    def who(self, scope: Scope, session: Session | None) -> Person | None:
        """Return who asks. Of a session that is idle, a kiosk is left."""
        if session is not None:
            return Person("", "viewer") if session.is_idle else Person(session.name, session.account.role)
        return Person("", "viewer") if _is_in(scope, self._kiosk) else None

    def refusal(self, scope: Scope, headers: Headers, who: Person | None, session: Session | None) -> Response | None:
        """Return why this is not answered, or None."""
        path = scope["path"]
        if scope.get("method", "GET") not in _SAFE and (fault := _change_fault(path, headers, session)):
            return fault
        if path in OPEN or path.startswith("/static/") or (path == "/metrics" and _is_in(scope, self._metrics)):
            return None
        if who is None:
            if "text/html" in headers.get("accept", ""):
                return RedirectResponse("/sign-in", 303)
            return _no(401, "console: nobody is signed in; sign in first")
        if not who.name and path not in KIOSK_MAY:
            return _no(403, "console: this is not shown without a name; sign in first")
        return None


class Guard:
    """ASGI middleware: refuse who may not, add the security headers."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate
        self._headers = dict(_HEADERS)
        if gate.is_tls:
            self._headers["strict-transport-security"] = f"max-age={_HSTS_S}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(scope)
        if refusal is None:
            if scope["type"] == "websocket" and scope["nearscan.session"] is not None:
                return await self._until_it_ends(scope["nearscan.session"], scope, receive, send)
            return await self._app(scope, receive, send_guarded)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
        await refusal(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._gate.is_our_name(headers.get("host", "")) or not is_same_origin(headers, scope["scheme"]):
            text = "console: this host name or origin is not ours; open the page by this machine's name or address"
            return _no(421, text)
        session = self._gate.session(headers)
        who = self._gate.who(scope, session)
        refusal = self._gate.refusal(scope, headers, who, session)
        if refusal is None and session is not None and scope["type"] == "http":
            self._gate.sessions.touch(session, _idle_s(headers))
        scope["nearscan.person"], scope["nearscan.session"] = who, session
        return refusal

    async def _until_it_ends(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a WebSocket, but no longer than its session is open."""
        serving = asyncio.ensure_future(self._app(scope, receive, send))
        ending = asyncio.create_task(session.ended.wait())
        left_s = session.ends_s - time.monotonic()
        try:
            await asyncio.wait((serving, ending), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                return serving.result()
            serving.cancel()
            await asyncio.wait((serving,))
            with contextlib.suppress(TimeoutError):  # it takes nothing any more: hung up on without a word
                await asyncio.wait_for(send({"type": "websocket.close", "code": 1008, "reason": "signed out"}), 1.0)
        finally:
            serving.cancel()
            ending.cancel()


def _change_fault(path: str, headers: Headers, session: Session | None) -> Response | None:
    """What changes something comes from our own page, with the session's token, and in a bounded body."""
    length = headers.get("content-length", "")
    if not length.isdecimal() or len(length) > 12:
        return _no(411, "console: content-length is missing or no number; send it")
    if int(length) > MOST_BODY_BYTES:
        return _no(413, f"console: at most {MOST_BODY_BYTES} bytes are taken, got {length}; send less")
    if path == "/api/sign-in":
        return None
    if session is None:
        return _no(401, "console: nobody is signed in; sign in first")
    if not hmac.compare_digest(headers.get("x-csrf-token", "").encode(), session.csrf.encode()):
        return _no(403, "console: X-CSRF-Token is missing or not this session's; load the page again")
    return None


def _idle_s(headers: Headers) -> float:
    """How long ago somebody touched the page, as it says; without a word: now."""
    said = headers.get("x-idle-ms", "0")
    return int(said) / 1000 if said.isdecimal() and len(said) < 12 else 0.0


def _is_in(scope: Scope, networks: list[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address = ipaddress.ip_address(address_of(scope))
    return any(address in network for network in networks)


def _no(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
