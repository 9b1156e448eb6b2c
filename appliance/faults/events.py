# SPDX-License-Identifier: Apache-2.0
"""What was found in a scan, since when, and whether it persists."""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from typing import Any

from appliance.faults.vote import WINDOW_FRAMES, Vote
from appliance.frames import Finding

N_EVENTS = 200  # the newest are kept

Key = tuple[str, int | float]  # kind, coil
NO_COIL, EVERY_COIL, EVERY_SLICE = -1, -2, -1


class EventLog:
    """Counts findings, joins those of one kind and coil into one event, and votes.

    A vote is taken over all frames of the scan, and over those of each slice: a fault of one slice in twenty persists
    too. Of each kind together (spikes hit one coil now and another then): an alarm; of each coil: how long an event
    lasts, which is while one of its votes has a hit among its last five frames.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._events: deque[dict[str, Any]] = deque(maxlen=N_EVENTS)
        self._open: dict[Key, dict[str, Any]] = {}
        self._votes: dict[Key, dict[int, Vote]] = {}  # by slice

    def record(self, sequence: int, slice_index: int, found: list[Finding]) -> list[Finding]:
        """Take the findings of one frame; return them, with since when and an alarm where it persists."""
        hits = {key for finding in found for key in (_key(finding), (finding.kind, EVERY_COIL))}
        for key in self._votes.keys() | hits:
            self._vote(key, slice_index, key in hits)
        return [self._tell(sequence, slice_index, finding) for finding in found]

    def _vote(self, key: Key, slice_index: int, hit: bool) -> None:
        votes = self._votes.setdefault(key, {})
        for scope in (EVERY_SLICE, slice_index):
            if hit or scope in votes:
                votes.setdefault(scope, Vote()).add(hit)
        self._votes[key] = {scope: vote for scope, vote in votes.items() if vote.n_hits}
        if not self._votes[key]:
            del self._votes[key]
            self._open.pop(key, None)

    def _tell(self, sequence: int, slice_index: int, finding: Finding) -> Finding:
        key = _key(finding)
        self._counts[finding.kind] += 1
        alarming = finding.severity == "alarm" or self._alarming(finding.kind)
        event = self._open.get(key)
        if event is None:
            event = {"kind": finding.kind, "sequence": sequence, "slice": slice_index, "frames": 0, "alarm": False}
            event |= {"where": dict(finding.where), "message": finding.message}
            self._events.append(event)
            self._open[key] = event
        event |= {"last_sequence": sequence, "frames": event["frames"] + 1, "alarm": event["alarm"] or alarming}
        event |= {"measured": finding.measured, "threshold": finding.threshold}
        message = finding.message
        if event["frames"] > 1:
            most = max(vote.n_hits for vote in self._votes[key].values())
            message += f" (since frame {event['sequence']}, in {most} of the last {WINDOW_FRAMES} frames)"
        return dataclasses.replace(finding, message=message, severity="alarm" if alarming else "warning")

    def _alarming(self, kind: str) -> bool:
        return any(vote.alarming for vote in self._votes.get((kind, EVERY_COIL), {}).values())

    def alarms(self) -> list[str]:
        """Return what is an alarm now, in words; it stays until five frames did not have it."""
        return [
            f"{event['message']} (since frame {event['sequence']})"
            for (kind, _), event in self._open.items()
            if self._alarming(kind)
        ]

    def status(self) -> dict[str, Any]:
        """Return the count of findings by kind and the newest events, oldest first."""
        return {"findings": dict(self._counts), "events": [dict(event) for event in tuple(self._events)]}


def _key(finding: Finding) -> Key:
    return finding.kind, finding.where.get("coil", NO_COIL)
