# SPDX-License-Identifier: Apache-2.0
"""When to show a live image, where fewer are shown than come."""

from __future__ import annotations


class Pace:
    """At most so many a second on average, and nearly every one of them at once.

    An image that comes up to one period early is shown: of a source at just this rate some come a little early and
    some a little late, and to hold those back that are early would make all wait, up to a period each. One that comes
    earlier still waits for a newer one, or for its turn.
    """

    def __init__(self, rate_hz: float) -> None:
        self._period_s = 1 / rate_hz
        self.due_s = 0.0  # when the next one has its turn

    def may_show(self, now_s: float, has_just_come: bool) -> bool:
        """Whether the newest image is to be shown now."""
        return now_s >= self.due_s - (self._period_s if has_just_come else 0.0)

    def shown(self, now_s: float) -> None:
        """Say that one is shown."""
        self.due_s = max(self.due_s, now_s) + self._period_s
