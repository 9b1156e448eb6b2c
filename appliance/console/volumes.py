# SPDX-License-Identifier: Apache-2.0
"""The newest volume of every pipeline, as the live bus brings it.

Rule: voxels are never copied here, and never touched on the event loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from appliance.bus import Subscriber
from appliance.imaging.volume_message import TOPIC, Volume, unpack
from appliance.render.transfer import check_values

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Arrived:
    """One volume; `number` counts those of its pipeline, `arrived_ns` (CLOCK_MONOTONIC) is when it was here."""

    number: int
    volume: Volume
    arrived_ns: int


class Volumes:
    """Reads the bus on a thread of its own, and keeps one volume of each pipeline.

    Memory: that one, one that is on its way and one that waits in ZeroMQ; and the one before while it is drawn.
    """

    def __init__(self, run_dir: Path, pipelines: Iterable[str], changed: Callable[[], None]) -> None:
        self.newest: dict[str, Arrived] = {}
        self.faults: dict[str, str] = {}  # by pipeline: why what came last is not shown
        self._changed = changed
        self._run_dir, self._topics = run_dir, [(f"pipeline-{name}", TOPIC) for name in pipelines]
        self._n_arrived = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="volumes", daemon=True)

    def start(self) -> None:
        """Begin reading."""
        self._thread.start()

    def stop(self) -> None:
        """End reading."""
        self._stopping.set()
        self._thread.join(2)

    def _run(self) -> None:
        subscriber = Subscriber(self._run_dir, self._topics)
        while not self._stopping.is_set():
            message = subscriber.receive_view(0.2)
            if message is not None:
                process, _, header, payload = message
                self._take(process.removeprefix("pipeline-"), header, payload)
                del message, payload  # or this thread would hold a volume while it waits for the next
                self._changed()
        subscriber.close()

    def _take(self, pipeline: str, header: dict[str, object], payload: memoryview) -> None:
        try:
            volume = unpack(header, payload)
            check_values(volume)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            fault = str(error)
            if self.faults.get(pipeline) != fault:
                log.warning("%s: a volume is not shown: %s", pipeline, fault)
            self.faults[pipeline] = fault
            return
        self.faults.pop(pipeline, None)
        self._n_arrived += 1
        self.newest[pipeline] = Arrived(self._n_arrived, volume, time.monotonic_ns())
