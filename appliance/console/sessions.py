# SPDX-License-Identifier: Apache-2.0
"""Who is signed in: sessions in memory, for a browser each. A restart of the console signs everybody out.

Rule: belongs to the event loop. Of the token that a browser keeps, only the hash is kept here.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from appliance.console.accounts import Account

_MOST = 1000
_MOST_OF_ONE = 20  # browsers of one person; the oldest gives way


@dataclass(eq=False)
class Session:
    """One browser of one person. Times are CLOCK_MONOTONIC, in seconds."""

    name: str
    account: Account
    ends_s: float
    used_s: float
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    is_idle: bool = False  # nobody touched the page for too long: like a kiosk, until the next sign-in
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Sessions:
    """All that are open."""

    def __init__(self, idle_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._longest_s, self._clock = idle_s, longest_s, clock
        self._open: dict[bytes, Session] = {}  # oldest first

    def begin(self, name: str, account: Account) -> tuple[str, Session]:
        """Open a session with a token of its own; gives both."""
        now = self._clock()
        self._end_where(lambda one: one.ends_s <= now)
        for limit, own in ((_MOST_OF_ONE, self._of(name)), (_MOST, list(self._open.values()))):
            for oldest in own[: max(0, len(own) - limit + 1)]:
                self.end(oldest)
        token = secrets.token_urlsafe(32)
        session = Session(name, account, now + self._longest_s, now)
        self._open[_key(token)] = session
        return token, session

    def find(self, token: str) -> Session | None:
        """Return the session of a token; None: there is none, or it has ended."""
        session = self._open.get(_key(token))
        if session is None:
            return None
        now = self._clock()
        if now >= session.ends_s:
            self.end(session)
            return None
        session.is_idle = session.is_idle or now - session.used_s > self._idle_s
        return session

    def touch(self, session: Session, ago_s: float) -> None:
        """Somebody touched the page so long ago."""
        session.used_s = max(session.used_s, self._clock() - ago_s)

    def end(self, session: Session) -> None:
        """Close it: its token is worth nothing from now on, and who waits for `ended` goes on."""
        self._end_where(lambda one: one is session)

    def keep(self, accounts: Mapping[str, Account]) -> None:
        """End every session whose account is gone, or has another password or role than at its sign-in."""
        self._end_where(lambda one: accounts.get(one.name) != one.account)

    def _of(self, name: str) -> list[Session]:
        return [one for one in self._open.values() if one.name == name]

    def _end_where(self, is_over: Callable[[Session], bool]) -> None:
        for key, session in list(self._open.items()):
            if is_over(session):
                session.ended.set()
                del self._open[key]


def _key(token: str) -> bytes:
    """How a token is kept; looking up a hash tells nothing of the token by its timing."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
