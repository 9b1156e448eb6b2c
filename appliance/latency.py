# SPDX-License-Identifier: Apache-2.0
"""How long things took: percentiles over the newest samples."""

from __future__ import annotations

import math

import numpy as np

FIRST_MS, N_BINS = 0.125, 24  # of the histogram: bins of half an octave, to 500 ms, and one for all above
N_SAMPLES = 8192  # about two minutes at 60 frames/s; enough for a p99.9


class Latency:
    """A ring of the newest durations. One writer, any number of readers, no lock."""

    def __init__(self) -> None:
        self._ring_ms = np.zeros(N_SAMPLES, np.float32)
        self._n = 0

    def add_ns(self, duration_ns: int) -> None:
        """Record one duration."""
        self._ring_ms[self._n % N_SAMPLES] = duration_ns * 1e-6
        self._n += 1

    def summary_ms(self) -> dict[str, float]:
        """Return {"p50", "p95", "p99", "p99_9", "max", "mean"} in ms; empty before the first sample.

        Percentiles are samples (nearest rank), not interpolated.
        """
        samples = self._ring_ms[: min(self._n, N_SAMPLES)].copy()
        n = len(samples)
        if not n:
            return {}
        # By selection: np.percentile takes ten times as long, under the GIL that the graph's thread wants.
        ranks = [max(math.ceil(n * part) - 1, 0) for part in (0.5, 0.95, 0.99, 0.999, 1.0)]
        mean = round(float(samples.mean()), 3)
        samples.partition(sorted(set(ranks)))
        p50, p95, p99, p99_9, largest = samples[ranks].astype(float).round(3).tolist()
        return {"p50": p50, "p95": p95, "p99": p99, "p99_9": p99_9, "max": largest, "mean": mean}

    def histogram(self) -> list[int]:
        """Count the newest samples by size: up to FIRST_MS, then N_BINS of half an octave each, then all above; empty
        before the first sample."""
        samples = self._ring_ms[: min(self._n, N_SAMPLES)]
        if not len(samples):
            return []
        bins = np.ceil(2 * np.log2(np.maximum(samples, FIRST_MS) / FIRST_MS)).astype(np.int64)
        return np.bincount(np.minimum(bins, N_BINS + 1), minlength=N_BINS + 2).tolist()  # type: ignore[no-any-return]
