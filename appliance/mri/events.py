# SPDX-License-Identifier: Apache-2.0
"""What was found in a scan, and since when."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from typing import Any

from appliance.frames import Finding

N_EVENTS = 200  # the newest are kept

Key = tuple[str, int | float | None]  # kind, coil


class EventLog:
    """Counts findings, and joins those that persist from frame to frame of a slice into one event."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._events: deque[dict[str, Any]] = deque(maxlen=N_EVENTS)
        self._open: dict[int, dict[Key, dict[str, Any]]] = {}  # slice -> what its last frame showed

    def record(self, sequence: int, slice_index: int, found: list[Finding]) -> list[Finding]:
        """Take the findings of one frame; return them, each that persists with the frame it began at."""
        before = self._open.pop(slice_index, {})
        told = []
        for finding in found:
            self._counts[finding.kind] += 1
            key = (finding.kind, finding.where.get("coil"))
            event = before.get(key)
            if event is None:
                event = {"kind": finding.kind, "sequence": sequence, "last_sequence": sequence}
                event |= {"where": dict(finding.where), "message": finding.message}
                self._events.append(event)
            else:
                event["last_sequence"] = sequence
                since = f"{finding.message} (since frame {event['sequence']})"
                finding = dataclasses.replace(finding, message=since)
            self._open.setdefault(slice_index, {})[key] = event
            told.append(finding)
        return told

    def status(self) -> dict[str, Any]:
        """Return the count of findings by kind and the newest events, oldest first."""
        return {"findings": dict(self._counts), "events": [dict(event) for event in tuple(self._events)]}
