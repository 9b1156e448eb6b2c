# SPDX-License-Identifier: Apache-2.0
"""Rolling histograms of what a model meets, as a trend beside its card. It is no alarm and stops no image.

Rule: counts of grey values only, no patient data; the graph's thread touches no disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from appliance.buffer.drift_counts import WINDOW_H, DriftCounts
from appliance.errors import StorageError
from appliance.frames import Array
from appliance.inference.drift import (
    QUANTITIES,
    Counts,
    Distribution,
    Reference,
    bin_numbers,
    distance,
    edges_of,
    samples,
)

if TYPE_CHECKING:
    from appliance.context import Context
    from appliance.inference.open_model import LiveModel

log = logging.getLogger(__name__)

FEWEST_FRAMES = 50  # before anything is told
_KEEP_EVERY_S = 10.0  # what a kill may lose


class Drift:
    """What one model of one pipeline has met in the last 24 hours.

    `observe` belongs to the graph's thread and touches no disk; a thread of its own keeps the counts in `kept`.
    """

    def __init__(
        self, name: str, known: Reference | None, kept: DriftCounts, clock: Callable[[], float] = time.time
    ) -> None:
        self._name, self._known, self._kept, self._clock = name, known, kept, clock
        self._edges = edges_of(known)
        sizes = [len(edges) + 1 for edges in self._edges.values()]
        self._starts = dict(zip(self._edges, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        self._n_bins = sum(sizes)
        self._hours: dict[int, tuple[int, Counts]] = {}  # since 1970
        self._unkept: set[int] = set()
        self._counting = threading.Lock()  # held for additions of 50 numbers, never while anything is written
        self._loaded = False
        self._last_error = ""
        self._told: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="drift", daemon=True)

    def start(self) -> None:
        """Have the counts read and kept, from now on."""
        self._thread.start()

    def close(self) -> None:
        """Keep the rest and end the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2)
        self._kept.close()

    def observe(self, image: Array, result: Array, level: Array, scale: float, strength: float = 1.0) -> None:
        """Count one frame; see `samples` for what is given."""
        bins = [
            bin_numbers(values, self._edges[name]) + self._starts[name]
            for name, values in samples(image, result, level, scale, strength).items()
        ]
        self._add(self._hour(), 1, np.bincount(np.concatenate(bins), minlength=self._n_bins))

    def _hour(self) -> int:
        return int(self._clock() // 3600)

    def _add(self, hour: int, n_frames: int, counts: Counts) -> None:
        with self._counting:
            if hour not in self._hours:
                self._hours = {one: own for one, own in self._hours.items() if one > hour - WINDOW_H}
                self._hours[hour] = (0, np.zeros(self._n_bins, np.int64))
            before = self._hours[hour]
            self._hours[hour] = (before[0] + n_frames, before[1] + counts)
            self._unkept.add(hour)

    def window(self) -> tuple[int, dict[str, Counts]]:
        """Return how many frames were counted in the last 24 hours, and the histogram of each quantity."""
        now = self._hour()
        with self._counting:
            hours = [own for one, own in self._hours.items() if now - WINDOW_H < one <= now]
        counts = sum((own[1] for own in hours), np.zeros(self._n_bins, np.int64))
        parts = np.split(counts, list(self._starts.values())[1:])
        return sum(own[0] for own in hours), dict(zip(self._edges, parts, strict=True))

    def status(self) -> dict[str, Any]:
        """Plain values for console, API, metrics and journal."""
        n_frames, counts = self.window()
        distances, limits = self._compared(counts) if n_frames >= FEWEST_FRAMES else ({}, {})
        return {
            "trend": self._trend(n_frames, distances, limits),
            "unlike_card": [name for name in distances if distances[name] > limits[name]],
            "frames": n_frames,
            "window_h": WINDOW_H,
            "distance": distances,
            "limit": limits,
            "edges": {name: list(edges) for name, edges in self._edges.items()},
            "counts": {name: own.tolist() for name, own in counts.items()},
            "last_error": self._last_error,
        }

    def _compared(self, counts: dict[str, Counts]) -> tuple[dict[str, float], dict[str, float]]:
        """Distance and limit of each quantity that was there at all."""
        if self._known is None:
            return {}, {}
        expected: dict[str, Distribution] = {name: getattr(self._known, name) for name in counts if counts[name].any()}
        return (
            {name: round(distance(counts[name], own.shares), 4) for name, own in expected.items()},
            {name: round(own.limit, 4) for name, own in expected.items()},
        )

    def _trend(self, n_frames: int, distances: dict[str, float], limits: dict[str, float]) -> str:
        if self._known is None:
            return "no reference"
        if n_frames < FEWEST_FRAMES:
            return f"too few frames yet ({n_frames} of {FEWEST_FRAMES})"
        unlike = [
            f"{QUANTITIES[name]} {found:.2f} (limit {limits[name]:.2f})"
            for name, found in distances.items()
            if found > limits[name]
        ]
        return f"unlike its card: {', '.join(unlike)}" if unlike else "like its card"

    def _keep_on(self) -> None:
        self.keep()
        while not self._stopping.wait(_KEEP_EVERY_S):
            self.keep()
        self.keep()

    def keep(self) -> None:
        """Read what an earlier process kept, once; write what changed. Not from two threads at a time."""
        try:
            if not self._loaded:
                self._load()
            self._save()
            self._last_error = ""
        except StorageError as error:  # statistics: nothing waits for them, and the next time may go well
            if self._last_error != str(error):
                log.warning("drift of %s: not kept, tried again every %.0f s: %s", self._name, _KEEP_EVERY_S, error)
            self._last_error = str(error)
        self._tell()

    def _load(self) -> None:
        for hour, (n_frames, counts) in self._kept.load(self._clock()).items():
            if len(counts) == self._n_bins:
                self._add(hour, n_frames, np.array(counts, np.int64))
        self._loaded = True

    def _save(self) -> None:
        with self._counting:
            hours = {hour: self._hours[hour] for hour in self._unkept if hour in self._hours}
            self._unkept = set()
        try:
            if hours:
                plain = {hour: (n_frames, counts.tolist()) for hour, (n_frames, counts) in hours.items()}
                self._kept.save(plain, self._clock())
        except StorageError:
            with self._counting:
                self._unkept |= hours.keys()
            raise

    def _tell(self) -> None:
        """Have the journal say it once when a model begins or ceases to meet what its card does not know."""
        status = self.status()
        if status["unlike_card"] != self._told:
            self._told = status["unlike_card"]
            log.warning("model %s in the last %d h: %s", self._name, WINDOW_H, status["trend"])


def open_drift(live: LiveModel, context: Context) -> Drift:
    """Return the counts of this model in this pipeline, once per process."""
    return _open(live.card.name, live.provenance[1], live.card.drift, context.pipeline, context.data_dir)


@cache
def _open(name: str, digest: str, known: Reference | None, pipeline: str, data_dir: Path) -> Drift:
    bins = hashlib.sha256(json.dumps([digest, edges_of(known)]).encode()).hexdigest()
    drift = Drift(name, known, DriftCounts(data_dir, pipeline, name, bins))
    drift.start()
    return drift
