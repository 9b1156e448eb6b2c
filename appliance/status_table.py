# SPDX-License-Identifier: Apache-2.0
"""What `nearscan status` shows: the newest status of each process, from the live bus."""

from __future__ import annotations

import time
from typing import Any

from appliance import tables
from appliance.bus import Subscriber
from appliance.daemon import jobs
from appliance.settings import Settings

_WAIT_S = 2.0  # every process speaks once a second

Statuses = dict[str, dict[str, Any]]  # by process


def collect(settings: Settings, wait_s: float = _WAIT_S) -> Statuses:
    """Listen for `wait_s` at most, less when every process has been heard; empty when nothing runs."""
    wanted = ["daemon", *jobs(settings)]
    statuses: Statuses = {}
    subscriber = Subscriber(settings.site.sockets, [(process, "status") for process in wanted])
    until = time.monotonic() + wait_s
    while len(statuses) < len(wanted) and (left := until - time.monotonic()) > 0:
        heard = subscriber.receive(left)
        if heard:
            statuses[heard[0]] = heard[2]
    subscriber.close()
    return {process: statuses[process] for process in wanted if process in statuses}


def table(statuses: Statuses) -> str:
    """Write statuses for people."""
    if not statuses:
        return "nearscan is not running for this file (no process answers); start it with 'nearscan run'"
    rows = []
    children = statuses.get("daemon", {}).get("children", {})
    for process in [*statuses, *(name for name in children if name not in statuses)]:
        status = statuses.get(process)
        rows.append(_row(process, status) if status else (process, children[process]["state"], "-", "-", "-"))
    lines = tables.table(("process", "state", "age", "frames in", "alarms"), rows)
    return "\n".join(
        [lines, *_result_lines(statuses.get("deliverer", {})), *_model_lines(statuses), *_alarm_lines(statuses)]
    )


def _row(process: str, status: dict[str, Any]) -> tuple[str, str, str, str, str]:
    age_s = max(0.0, (time.time_ns() - status["time_ns"]) / 1e9)
    frames = str(status["frames"]["in"]) if "frames" in status else "-"
    return process, status["state"], f"{age_s:.1f} s", frames, str(len(status.get("alarms", {})))


def _result_lines(deliverer: dict[str, Any]) -> list[str]:
    counts = deliverer.get("results", {})
    plain = [f"{name} {count}" for name, count in counts.items() if isinstance(count, int)]
    return ["", "results: " + ", ".join(plain)] if plain else []


def _model_lines(statuses: Statuses) -> list[str]:
    """How the data that each model met compare with its card."""
    lines = [
        f"{process} {stage}: {own.get('model', '?')} in the last {own['drift']['window_h']} h: {own['drift']['trend']}"
        for process, status in statuses.items()
        for stage, own in status.get("stages", {}).items()
        if "drift" in own
    ]
    return ["", *lines] if lines else []


def _alarm_lines(statuses: Statuses) -> list[str]:
    lines = [
        f"ALARM {process} {key}: {text}"
        for process, status in statuses.items()
        for key, text in status.get("alarms", {}).items()
    ]
    return ["", *lines] if lines else []
