# SPDX-License-Identifier: Apache-2.0
"""The newest status of every process, and the newest preview of every pipeline, as the live bus brings them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.bus import Subscriber

SILENT_S = 3.5  # a process says how it is once a second


@dataclass(frozen=True)
class Preview:
    """One message of topic "preview"."""

    number: int
    header: dict[str, Any]
    pixels: bytes


class Newest:
    """Reads the bus on a thread of its own. Events of `watch` are set on the loop that called `start`."""

    def __init__(self, run_dir: Path, pipelines: Iterable[str]) -> None:
        self.pipelines = tuple(pipelines)
        self.previews: dict[str, Preview] = {}
        pipelines = (f"pipeline-{name}" for name in self.pipelines)
        self._processes = ("daemon", "receiver", "deliverer", "console", *pipelines)  # its own alarms are shown too
        self._statuses: dict[str, tuple[float, dict[str, Any]]] = {}
        self._watching: dict[str, set[asyncio.Event]] = {name: set() for name in self.pipelines}
        topics = [(process, "status") for process in self._processes]
        topics += [(f"pipeline-{name}", "preview") for name in self.pipelines]
        self._run_dir, self._topics = run_dir, topics
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bus", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin reading; call it on the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._stopping.set()
        self._thread.join(2)

    def watch(self, pipeline: str, changed: asyncio.Event) -> None:
        """Have `changed` set whenever a preview of `pipeline` comes."""
        self._watching[pipeline].add(changed)

    def unwatch(self, pipeline: str, changed: asyncio.Event) -> None:
        """End `watch`."""
        self._watching[pipeline].discard(changed)

    @property
    def n_viewers(self) -> int:
        """Pages that watch."""
        return sum(len(events) for events in list(self._watching.values()))

    def statuses(self) -> dict[str, dict[str, Any]]:
        """Return the newest status of each process heard of, with "age_ms"; a silent one has state "silent"."""
        now_s = time.monotonic()
        found = {}
        for process, (heard_s, status) in sorted(self._statuses.copy().items()):
            state = status.get("state", "?") if now_s - heard_s < SILENT_S else "silent"
            found[process] = {**status, "state": state, "age_ms": int((now_s - heard_s) * 1000)}
        return found

    def _run(self) -> None:
        subscriber = Subscriber(self._run_dir, self._topics)
        while not self._stopping.is_set():
            message = subscriber.receive(0.2)
            if message is None:
                continue
            process, topic, header, payload = message
            if topic == "status":
                self._statuses[process] = (time.monotonic(), header)
            else:
                self._take_preview(process.removeprefix("pipeline-"), header, payload)
        subscriber.close()

    def _take_preview(self, pipeline: str, header: dict[str, Any], pixels: bytes) -> None:
        before = self.previews.get(pipeline)
        self.previews[pipeline] = Preview(before.number + 1 if before else 1, header, pixels)
        if self._loop is not None and not self._stopping.is_set():
            self._loop.call_soon_threadsafe(self._wake, pipeline)

    def _wake(self, pipeline: str) -> None:
        for changed in self._watching[pipeline]:
            changed.set()
