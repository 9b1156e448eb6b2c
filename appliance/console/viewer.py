# SPDX-License-Identifier: Apache-2.0
"""One page that looks at volumes: what it wants to see, what it got, and what is to be drawn for it next.

Shared by the event loop and the render thread; each field is written by one of them, and replaced as a whole.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from appliance.console.kpis import Kpis
from appliance.console.roles import Role
from appliance.console.volumes import Arrived
from appliance.render.view import View

ON_THE_WAY = 2  # pictures that the page has not acknowledged
LEVELS = ("draft", "sharp", "finest")


@dataclass(frozen=True)
class Wanted:
    """A view, and when it was asked for (CLOCK_MONOTONIC)."""

    number: int
    view: View
    asked_ns: int


@dataclass(frozen=True)
class Task:
    """One picture to be drawn."""

    wanted: Wanted
    arrived: Arrived
    level: int  # of LEVELS


@dataclass(frozen=True)
class Drawn:
    """What is remembered of a picture; no volume, or a page that never answers would hold it."""

    number: int
    wanted: Wanted
    volume_number: int
    scan_id: str
    level: int
    arrived_ns: int
    received_ns: int
    complete: bool


class Viewer:
    """One page. `deliver` takes (header, encoded picture) and is called on the render thread."""

    def __init__(self, pipeline: str, role: Role, kpis: Kpis, deliver: Callable[[dict[str, Any], bytes], None]) -> None:
        self.pipeline, self.role, self.deliver = pipeline, role, deliver
        self.wanted: Wanted | None = None  # by the event loop
        self.draft = 1  # of draw.DRAFTS; by the render thread, as are the next four
        self.is_slow = False  # sharp pictures come later than newer volumes: those are drawn as drafts first
        self.used_s = 0.0
        self.said = ""
        self._last: Drawn | None = None
        self._sent: deque[Drawn] = deque()
        self._kpis = kpis
        self._opened_ns = time.monotonic_ns()
        self._seen: Drawn | None = None
        self._seen_ns = 0
        self._released_ns = 0

    def want(self, view: View) -> None:
        """Take a new view from the page; only the newest counts."""
        before = self.wanted
        now_ns = time.monotonic_ns()
        if before is not None and before.view.dragging and not view.dragging:
            self._released_ns = now_ns
        self.wanted = Wanted(before.number + 1 if before else 1, view, now_ns)

    def next_task(self, arrived: Arrived | None) -> Task | None:
        """Return what is to be drawn now, or None: nothing new, or the page is behind."""
        wanted, last = self.wanted, self._last
        if wanted is None or arrived is None or len(self._sent) >= ON_THE_WAY:
            return None
        if last is None or last.scan_id != arrived.volume.scan_id or wanted.view.dragging or self.is_slow:
            level = 0  # an image soon
        else:
            level = 1
        if last is not None and (last.wanted, last.volume_number) == (wanted, arrived.number):
            level = last.level if wanted.view.dragging else last.level + 1
            if level == last.level or level == len(LEVELS):
                return None
        return Task(wanted, arrived, level)

    def is_in_vain(self, task: Task) -> bool:
        """Whether a task in progress is no longer wanted. A draft is finished: it is shorter than a hand is fast."""
        return task.level > 0 and self.wanted is not task.wanted

    def done(self, task: Task, header: dict[str, Any], encoded: bytes) -> None:
        """Hand over a picture."""
        number, volume = (self._last.number if self._last else 0) + 1, task.arrived.volume
        self._last = Drawn(
            number, task.wanted, task.arrived.number, volume.scan_id, task.level, task.arrived.arrived_ns,
            volume.received_ns, volume.complete,
        )  # fmt: skip
        self._sent.append(self._last)
        self.deliver({**header, "number": number}, encoded)

    def seen(self, number: int) -> None:
        """The page has drawn picture `number`, and with it all before. Called on the event loop."""
        now_ns, newest = time.monotonic_ns(), None
        while self._sent and self._sent[0].number <= number:
            newest = self._sent.popleft()
        if newest is not None:
            self._measure(newest, now_ns)
            self._seen, self._seen_ns = newest, now_ns

    def _measure(self, drawn: Drawn, now_ns: int) -> None:
        before, wanted = self._seen, drawn.wanted
        if before is None:
            self._add("first_image", now_ns - self._opened_ns)
        if not drawn.complete:
            self._add("age", now_ns - drawn.received_ns)
        if before is not None and before.volume_number != drawn.volume_number:
            self._add("update", now_ns - drawn.arrived_ns)
        if wanted.view.dragging:
            self._add("drag_lag", now_ns - wanted.asked_ns)
            if before is not None and before.wanted.view.dragging:
                self._add("drag_interval", now_ns - self._seen_ns)
        elif drawn.level > 0 and self._released_ns:
            self._add("sharp", now_ns - self._released_ns)
            self._released_ns = 0

    def _add(self, quantity: str, duration_ns: int) -> None:
        self._kpis.add(self.role, quantity, duration_ns)
