# SPDX-License-Identifier: Apache-2.0
"""Signing in and out: /sign-in, /api/sign-in, /api/sign-out and /api/me.

``POST /api/sign-in {"name", "password"}`` answers what ``GET /api/me`` does: {"name", "role", "csrf", "ends_in_s"}. A
kiosk is {"name": "", "role": "viewer", "csrf": "", "ends_in_s": null}; nobody has the role "". Every POST but the
sign-in carries the header X-CSRF-Token. A page says with X-Idle-Ms, on any request, how long ago somebody touched it;
without that, now is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from appliance.console.accounts import MOST_CHARACTERS, Account, Accounts, nobodys_hash, verify
from appliance.console.audit import Audit
from appliance.console.guard import Gate, address_of, session_of
from appliance.console.roles import person
from appliance.console.sessions import Session, Sessions
from appliance.console.sign_in_waits import Waits
from appliance.errors import ConfigError, StorageError
from appliance.settings import Model

_LOOK_EVERY_S = 1.0
_MOST_AT_ONCE = 16  # waiting for the one thread that looks at passwords: some seconds of its work
_MOST_BYTES = 4096
_NICE = 10  # the live path goes first
_WRONG = "sign-in: name or password is wrong; try again, or ask an engineer for a new password"

log = logging.getLogger(__name__)


class _Typed(Model):
    name: str = Field(max_length=MOST_CHARACTERS)
    password: str = Field(max_length=MOST_CHARACTERS)


class SignIn:
    """Looks at passwords, and at the accounts' file once a second."""

    def __init__(
        self, accounts: Accounts, gate: Gate, audit: Audit, page: Path, alarm: Callable[[str, str], None]
    ) -> None:
        self._accounts, self._gate, self._audit, self._page, self._alarm = accounts, gate, audit, page, alarm
        self._waits = Waits()
        self._n_trying = 0
        # One: 64 MiB and one core at a time, whoever knocks.
        self._thread = ThreadPoolExecutor(1, "passwords", lambda: os.setpriority(os.PRIO_PROCESS, _thread(), _NICE))

    @property
    def sessions(self) -> Sessions:
        """Who is signed in."""
        return self._gate.sessions

    def routes(self) -> list[Route]:
        """Return the addresses."""
        return [
            Route("/sign-in", self._show),
            Route("/api/me", self._me),
            Route("/api/sign-in", self._sign_in, methods=["POST"]),
            Route("/api/sign-out", self._sign_out, methods=["POST"]),
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the accounts' file."""
        following = asyncio.create_task(self._follow())
        following.add_done_callback(self._stopped_following)
        try:
            yield
        finally:
            following.cancel()
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def _follow(self) -> None:
        """End the sessions of accounts that were changed. What cannot be read says nothing about anybody: then those
        who are signed in stay so, an alarm is raised, and nobody signs in anew."""
        await self._in_thread(nobodys_hash)
        while True:
            accounts = await self._read()
            if accounts is not None:
                self.sessions.keep(accounts)
            await asyncio.sleep(_LOOK_EVERY_S)

    def _stopped_following(self, following: asyncio.Task[None]) -> None:
        if not following.cancelled():
            text = f"accounts: changes are not seen any more ({following.exception()!r}); restart the console"
            self._alarm("accounts", text)

    async def _read(self) -> dict[str, Account] | None:
        try:
            accounts = await asyncio.to_thread(self._accounts.read)
        except ConfigError as error:
            self._alarm("accounts", str(error))
            return None
        self._alarm("accounts", "")
        return accounts

    async def _show(self, _: Request) -> Response:
        return FileResponse(self._page)

    async def _me(self, request: Request) -> Response:
        return JSONResponse(_who(request))

    async def _sign_in(self, request: Request) -> Response:
        try:
            typed = _typed(await _body(request))
        except ValueError as error:
            return _no(400, str(error))
        name, address = typed.name.strip().lower(), address_of(request.scope)
        if self._n_trying >= _MOST_AT_ONCE and not self._waits.is_home(address, name):
            return _later(503, 1.0, "too many people sign in at this moment")
        wait_s = self._waits.begin(address, name)
        if wait_s:
            return _later(429, wait_s, "too many wrong passwords")
        self._n_trying += 1
        try:
            is_known, account = await self._in_thread(lambda: self._look(name, typed.password))
        except ConfigError as error:
            return _no(503, f"sign-in: nobody can sign in now: {error}")
        finally:
            self._n_trying -= 1
        if account is not None:
            return await self._begin(request, address, name, account)
        # what was typed as a name may be a password: only an account's name is written down
        await self._note(name if is_known else "", "failed sign-in", f"from {address}")
        return _no(401, _WRONG)

    def _look(self, name: str, password: str) -> tuple[bool, Account | None]:
        """Return whether there is such an account, and the account if the password is right."""
        account = self._accounts.read().get(name)
        return account is not None, account if verify(account, password) else None

    async def _begin(self, request: Request, address: str, name: str, account: Account) -> Response:
        self._waits.was_right(address, name)
        await self._note(name, "sign-in", f"as {account.role} from {address}")
        if before := session_of(request):
            self.sessions.end(before)
        token, session = self.sessions.begin(name, account)
        answer = JSONResponse(_said(session))
        self._gate.set_cookie(answer, token)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        session = session_of(request)
        if session is not None:  # the guard lets no other POST through
            self.sessions.end(session)
            await self._note(session.name, "sign-out", f"from {address_of(request.scope)}")
        answer = JSONResponse({})
        self._gate.set_cookie(answer, None)
        return answer

    async def _note(self, who: str, action: str, detail: str) -> None:
        """With a full disk people must still come in to see why; an alarm says what is missing from the audit."""
        log.info("%s: %s %s", action, who or "no account", detail)
        try:
            await self._audit(who, action, detail)
        except StorageError as error:
            log.error("not in the audit: %s %s %s", who or "no account", action, detail)
            self._alarm("audit", f"sign-ins are not in the audit, but in the log: {error}")
        else:
            self._alarm("audit", "")

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _who(connection: HTTPConnection) -> dict[str, Any]:
    session, who = session_of(connection), person(connection)
    if session is not None and not session.is_idle:
        return _said(session)
    return {"name": "", "role": who.role if who else "", "csrf": "", "ends_in_s": None}


def _said(session: Session) -> dict[str, Any]:
    return {
        "name": session.name,
        "role": session.account.role,
        "csrf": session.csrf,
        "ends_in_s": round(session.ends_s - time.monotonic()),
    }


async def _body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ValueError("sign-in: content-type application/json is expected; sign in on this box's own page")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ValueError(f"sign-in: at most {_MOST_BYTES} bytes are taken; type less")
    return bytes(body)


def _typed(body: bytes) -> _Typed:
    try:
        return _Typed.model_validate_json(body, strict=True)
    except ValidationError:  # its text would show what was typed
        raise ValueError(
            'sign-in: {"name": text, "password": text} is expected; sign in on this box\'s own page'
        ) from None


def _no(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status)


def _later(status: int, wait_s: float, why: str) -> JSONResponse:
    seconds = math.ceil(wait_s)
    text = f"sign-in: {why}; try again in {seconds} s"
    return JSONResponse({"error": text, "wait_s": seconds}, status, headers={"retry-after": str(seconds)})


def _thread() -> int:
    return threading.get_native_id()
