# SPDX-License-Identifier: Apache-2.0
"""What a pipeline tells the console while a scanner sends: previews 25 times a second, and a status."""

import itertools
import threading
import time

import numpy as np

from appliance.latency import Latency


def spread(ms):
    """A histogram as a running stage gives it: a thousand times about `ms`, and a few late ones."""
    latency, rng = Latency(), np.random.default_rng(0)
    for took_ms in [*(ms * rng.lognormal(0, 0.15, 1000)), *(ms * rng.lognormal(1.5, 0.3, 8))]:
        latency.add_ns(int(took_ms * 1e6))
    return latency.histogram()


NOT_YET = "not commissioned: default thresholds; run 'nearscan commission mri-live' after 500 clean frames"
SPIKE = "RF spike in line 81 of coil 3: check the room's door and the lamps"
ZIPPER = "interference of one frequency: column 384 of the image is 9.0 times as bright as expected"
STATUS = {
    "pipeline": "mri-live",
    "device": "cpu",
    "realtime": True,
    "source": {"name": "mrd", "sessions": 1},
    "frames": {"in": 1234, "waiting": 0},
    "stages": {
        "reconstruct": {
            "frames": 1234, "latency_histogram": spread(3.1),
            "latency_ms": {"p50": 3.1, "p95": 3.9, "p99": 5.2, "max": 7.7},
        },
        "denoise": {
            "passed_through": 3, "deadline_misses": 1, "latency_ms": {"p50": 4.2, "p99": 6.4, "max": 9.1},
            "model": "mr-denoise", "version": 3, "backend": "openvino", "precision": "bf16", "model_state": "running",
            "latency_histogram": spread(4.2),
            "drift": {
                "trend": "unlike its card: noise level over the image's scale 0.97 (limit 0.88)",
                "unlike_card": ["level"], "distance": {"level": 0.97}, "limit": {"level": 0.88},
            },
        },
        "detect_anomalies": {
            "latency_histogram": spread(2.1), "latency_ms": {"p50": 2.1, "p99": 3.3, "max": 4.0},
            "commissioned": NOT_YET, "snr_db": 31.25,
        },
    },
    "sinks": {
        "openigtlink": {
            "latency_histogram": spread(8.4), "latency_ms": {"p50": 8.4, "p95": 10.2, "p99": 12.9, "max": 15.4},
            "displays": [{"peer": "127.0.0.1:5", "sent": 1230, "dropped": 4}],
            "overwritten": 0,
            "dropped_displays": 0,
        },
        "preview": {"latency_histogram": spread(8.0), "latency_ms": {"p50": 8.0, "p95": 9.1, "p99": 10.0, "max": 12.0}},
    },
}  # fmt: skip


AWAY = "pacs does not answer since 12 s; check its network"
DELIVERER = {
    "alarms": {"pacs": AWAY},
    "destinations": {
        "pacs": {
            "state": "waiting", "failures": 4, "last_error": "association: pacs: connection refused; is it running?",
            "next_try_s": time.time() + 3600, "sent": 8, "verified": 0, "committed": 18,
        }
    },
    "free_gb": 400.0,
}  # fmt: skip
MINUTE_NS = 60_000_000_000
FOUND = [
    {"kind": "spike", "severity": "alarm", "message": SPIKE, "where": {"coil": 3, "line": 81, "column": 12}},
    {"kind": "zipper", "severity": "warning", "message": ZIPPER, "where": {"column": 384, "of_width": 0.75}},
]


def long_ago(now_ns):
    """What was found minutes before this image: listed, and not remarked any more."""
    words = {"kind": "coil_drop", "severity": "warning", "message": "coil 5 lost its signal: check its plug"}
    return {
        **words,
        "where": {"coil": 5},
        "count": 40,
        "last_ns": now_ns - MINUTE_NS,
        "first_ns": now_ns - 2 * MINUTE_NS,
    }


class Scanner:
    """Publishes previews until told to stop."""

    def __init__(self, bench, **header):
        self._bench, self._header, self._pixels = bench, header, phantom()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        for sequence in itertools.count():
            if self._stopping.wait(1 / 25):
                return
            header = {**self._header}
            if "findings" in header:
                now_ns = time.time_ns()
                new = {"first_ns": now_ns, "last_ns": now_ns, "count": 1, "sequence": sequence}
                header["recent_findings"] = [{**one, **new} for one in header["findings"]] + [long_ago(now_ns)]
            self._bench.show(sequence, self._pixels, **header)
            if sequence % 10 == 0:
                self._bench.tell("pipeline-mri-live", **STATUS)
                self._bench.tell("daemon")
                self._bench.tell("deliverer", **DELIVERER)

    def stop(self):
        self._stopping.set()
        self._thread.join()


def phantom(size=256):
    """After, before and removed: two ellipses and some structure, without noise, with, and the noise."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    body = 90.0 * (x**2 / 0.6 + y**2 / 0.8 < 1) + 80 * ((x - 0.1) ** 2 + (y + 0.1) ** 2 < 0.12)
    body += 60 * ((x + 0.35) ** 2 + (y - 0.3) ** 2 < 0.03)
    noise = np.random.default_rng(0).normal(scale=18, size=body.shape)
    noisy = np.abs(body + noise)
    return np.clip(np.stack([body, noisy, 127 + (noisy - body)]), 0, 255).astype(np.uint8)
