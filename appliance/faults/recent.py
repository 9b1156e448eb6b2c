# SPDX-License-Identifier: Apache-2.0
"""The newest findings of a pipeline, for people who look a moment later; what repeats is one entry with a count."""

from __future__ import annotations

from typing import Any

from appliance.frames import Frame

N_KEPT = 50


class RecentFindings:
    """One thread adds, others may read."""

    def __init__(self) -> None:
        self._recent: dict[tuple[Any, ...], dict[str, Any]] = {}

    def add(self, frame: Frame) -> None:
        """Take what was found in `frame`."""
        for finding in frame.findings:
            key = (frame.scan_id, finding.kind, finding.where.get("coil"))
            first = {"first_ns": frame.acquired_ns, "count": 0, "severity": finding.severity}
            found = self._recent.pop(key, first)
            worst = "alarm" if "alarm" in (found["severity"], finding.severity) else "warning"
            found = {**found, "kind": finding.kind, "severity": worst, "message": finding.message}
            found |= {"where": {**finding.where}, "last_ns": frame.acquired_ns, "sequence": frame.sequence}
            self._recent[key] = {**found, "scan_id": frame.scan_id, "count": found["count"] + 1}
        while len(self._recent) > N_KEPT:
            del self._recent[next(iter(self._recent))]

    def newest(self, n: int = N_KEPT) -> list[dict[str, Any]]:
        """Give up to `n`, newest first, as plain values."""
        found = list(self._recent.values())  # at once: another thread adds
        found.reverse()
        found.sort(key=lambda one: -one["last_ns"])
        return found[:n]
