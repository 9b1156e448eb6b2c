# SPDX-License-Identifier: Apache-2.0
"""How long who types wrong passwords has to wait, so that guessing is slow and nobody is locked out for long.

Failures are counted for an address and for an account. From some on, each doubles the wait for the next try, up to a
minute for an address and ten seconds for an account. An account's wait does not bind addresses from which its owner
has signed in before: who attacks an account from elsewhere does not keep its owner off the console. A refused try does
not lengthen the wait. Names that are no account count like those that are.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FORGET_S = 900.0
_MOST = 10_000


@dataclass(frozen=True)
class Limit:
    """The first `free` failures cost no wait; the next costs 1 s, then 2, 4, … up to `longest_s`."""

    free: int
    longest_s: float


OF_ADDRESS = Limit(5, 60.0)
OF_ACCOUNT = Limit(10, 10.0)  # 8,640 guesses a day; a password of 12 characters stands that


@dataclass
class _Failures:
    count: int = 0
    last_s: float = 0.0
    next_s: float = 0.0  # no try before


class _Counter:
    """Failures by key; of too many keys the one that failed longest ago is forgotten."""

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def wait_s(self, key: str, now: float) -> float:
        found = self._failures.get(key)
        return max(0.0, found.next_s - now) if found else 0.0

    def failed(self, key: str, now: float) -> None:
        found = self._failures.pop(key, None)
        if found is None or now - found.last_s > FORGET_S:
            found = _Failures()
        found.count, found.last_s = found.count + 1, now
        over = found.count - self._limit.free
        found.next_s = now + min(self._limit.longest_s, 2.0 ** (min(over, 32) - 1)) if over > 0 else 0.0
        self._failures[key] = found
        if len(self._failures) > _MOST:
            self._failures.popitem(last=False)

    def was_right(self, key: str) -> None:
        """The last try was no failure. Those before it still count: who has an account cannot guess at others' for
        nothing."""
        if found := self._failures.get(key):
            found.count, found.next_s = found.count - 1, 0.0


class Waits:
    """Asked before a password is looked at, told afterwards. Belongs to the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses, self._accounts = _Counter(OF_ADDRESS), _Counter(OF_ACCOUNT)
        self._homes: OrderedDict[tuple[str, str], None] = OrderedDict()  # from where who has signed in

    def is_home(self, address: str, name: str) -> bool:
        """Whether this person has signed in from there."""
        return (_place(address), name) in self._homes

    def begin(self, address: str, name: str) -> float:
        """Return how many seconds this try has to wait. 0: it may go on, and counts as failed until `was_right`, so
        that many at one time gain nothing."""
        place, now = _place(address), self._clock()
        is_home = self.is_home(address, name)
        wait_s = max(self._addresses.wait_s(place, now), 0.0 if is_home else self._accounts.wait_s(name, now))
        if not wait_s:
            self._addresses.failed(place, now)
            if not is_home:
                self._accounts.failed(name, now)
        return wait_s

    def was_right(self, address: str, name: str) -> None:
        """The try that `begin` let through had the right password."""
        place = _place(address)
        self._addresses.was_right(place)
        if (place, name) not in self._homes:
            self._accounts.was_right(name)
        self._homes[place, name] = None
        self._homes.move_to_end((place, name))
        if len(self._homes) > _MOST:
            self._homes.popitem(last=False)


def _place(address: str) -> str:
    """An IPv6 host has a whole /64 to call from."""
    ip = ipaddress.ip_address(address)
    return f"{int(ip) >> 64:x}::/64" if ip.version == 6 else address
