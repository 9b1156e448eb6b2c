# SPDX-License-Identifier: Apache-2.0
"""How it feels to look at volumes: what each role waits for, measured from the page's own acknowledgements.

A picture counts when the page says that it has drawn it. docs/console.md says what each quantity is for.
"""

from __future__ import annotations

from typing import Any

from appliance.console.roles import ROLES, Role
from appliance.latency import Latency

# "drag_interval": one over it are the frames per second while dragging.
QUANTITIES = ("first_image", "age", "update", "drag_interval", "drag_lag", "sharp")


class Kpis:
    """Durations of each quantity for each role."""

    def __init__(self) -> None:
        self._durations: dict[tuple[Role, str], Latency] = {}

    def add(self, role: Role, quantity: str, duration_ns: int) -> None:
        """Record one duration."""
        assert quantity in QUANTITIES
        self._durations.setdefault((role, quantity), Latency()).add_ns(duration_ns)

    def status(self) -> dict[str, dict[str, Any]]:
        """Return {role: {quantity_ms: {"p50", …}}}; what was never measured is not there."""
        measured = self._durations.copy()
        return {
            role: {f"{what}_ms": each.summary_ms() for (who, what), each in measured.items() if who == role}
            for role in ROLES
            if any(who == role for who, _ in measured)
        }
