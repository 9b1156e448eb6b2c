# SPDX-License-Identifier: Apache-2.0
"""The live path: 256 x 256, 8 coils, R=2, from the scanner's last byte to the display's last byte.

    python benchmarks/live.py [--seconds 30] [--rate 60] [--json FILE]

A whole appliance runs (daemon, pipeline process); scanner and display are this process. The peer does the same
mathematics to the same frames in the same run: pygrappa.mdgrappa, then skimage's fast non-local means.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # the peer's denominator is one thread

import numpy as np
import psutil
from pygrappa import mdgrappa
from skimage.restoration import denoise_nl_means

from appliance.latency import Latency
from appliance.mri.phantom import NOISE_STD, cine_kspace
from appliance.simulate.display import Display
from appliance.simulate.mri import stream_cine
from appliance.simulate.site import Site

MATRIX, N_COILS, R, N_CALIBRATION = (256, 256), 8, 2, 24
SIGMA = NOISE_STD * R**0.5  # known to the peer; ours measures it
N_DISTINCT = 72  # frames made beforehand and repeated: three heart beats
SITE = """\
site: {name: bench, data_dir: $data_dir, run_dir: $run_dir}
pipelines:
  live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages: [reconstruct, {denoise: {model: mr-denoise}}, detect_anomalies]
    sinks: [{openigtlink: {port: $display, protocol: 3}}, preview]
"""


class Memory:
    """Largest proportional set size of a process and all below it, sampled."""

    def __init__(self, pid: int) -> None:
        self.peak_mib = 0.0
        self._tree = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            total = 0
            for process in (self._tree, *self._tree.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self.peak_mib


def stream(site: Site, frames: list[np.ndarray], n_frames: int, rate_hz: float) -> dict:
    """Stream and return what the display saw."""
    display = Display("127.0.0.1", site.ports["display"])
    started = time.monotonic()
    result = stream_cine(
        "127.0.0.1",
        site.ports["mrd"],
        (frames[n % len(frames)] for n in range(n_frames)),
        acceleration=R,
        n_calibration_lines=N_CALIBRATION,
        frame_rate_hz=rate_hz,
    )
    seconds = time.monotonic() - started
    time.sleep(1.0)
    display.close()
    arrived = {sequence: ns for (_, sequence), ns in display.shown.arrived_ns.items()}
    latency = Latency()
    for sequence, ns in sorted(arrived.items()):
        if sequence:  # the first one waits for its calibration; told apart
            latency.add_ns(ns - result.sent_ns[sequence])
    summary = latency.summary_ms()
    first, last = result.sent_ns[0], max(arrived.values())
    return {
        "frames_sent": n_frames,
        "frames_shown": len(arrived),
        "frames_per_s": (n_frames - 1) / ((last - first) * 1e-9),
        "stream_s": seconds,
        "first_frame_ms": (arrived[0] - result.sent_ns[0]) * 1e-6 if 0 in arrived else None,
        "latency_ms": summary,
        "max_over_mean": summary["max"] / summary["mean"],
    }


def peer(frames: list[np.ndarray], n: int) -> dict:
    """One frame of the peer's way: mdgrappa, root sum of squares, fast non-local means."""
    low = MATRIX[0] // 2 - N_CALIBRATION // 2
    times = []
    for kspace in frames[:n]:
        under = kspace.copy()
        under[:, 1::R] = 0
        started = time.perf_counter()
        full = mdgrappa(under, kspace[:, low : low + N_CALIBRATION], kernel_size=(5, 5), coil_axis=0)
        shifted = np.fft.ifftshift(full, axes=(1, 2))
        image = np.sqrt((np.abs(np.fft.fftshift(np.fft.ifft2(shifted, norm="ortho"), axes=(1, 2))) ** 2).sum(0))
        denoise_nl_means(image, h=0.8 * SIGMA, sigma=SIGMA, fast_mode=True, patch_size=5, patch_distance=6)
        times.append(time.perf_counter() - started)
    return {"frame_ms": float(np.median(times)) * 1e3, "frames": n}


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.release()}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--rate", type=float, default=60.0)
    arguments.add_argument("--peer-frames", type=int, default=3)
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    frames = [cine_kspace(n, MATRIX, N_COILS) for n in range(N_DISTINCT)]
    with tempfile.TemporaryDirectory(prefix="nearscan-bench-") as folder:
        site = Site(Path(folder), SITE, ports=("mrd", "display"))
        try:
            site.start()
            memory = Memory(site.processes["appliance"].pid)
            stream(site, frames, 60, options.rate)  # warm
            paced = stream(site, frames, int(options.seconds * options.rate), options.rate)
            time.sleep(1.5)
            stages = site.status["pipeline-live"]["stages"]
            flat_out = stream(site, frames, 600, 10_000.0)
            peak_mib = memory.stop()
        finally:
            site.stop()
    peers = peer(frames, options.peer_frames)
    ours_ms = 1e3 / flat_out["frames_per_s"]
    result = {
        "machine": machine(),
        "rate_hz": options.rate,
        "paced": paced,
        "stages_ms": {name: stage["latency_ms"] for name, stage in stages.items()},
        "denoise_backend": {k: v for k, v in stages["denoise"].items() if isinstance(v, str)},
        "flat_out": flat_out,
        "peer": peers,
        "times_peer": peers["frame_ms"] / ours_ms,
        "peak_memory_mib": peak_mib,
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(result: dict) -> None:
    paced, flat_out, latency = result["paced"], result["flat_out"], result["paced"]["latency_ms"]
    rows = [
        ("machine", f"{result['machine']['cpu']}, {result['machine']['cores']} cores"),
        (f"paced at {result['rate_hz']:.0f}/s", f"{paced['frames_sent']} sent, {paced['frames_shown']} shown"),
        ("end to end", "  ".join(f"{k} {latency[k]:.2f}" for k in ("p50", "p95", "p99", "p99_9", "max")) + " ms"),
        ("max / mean", f"{paced['max_over_mean']:.2f}"),
        ("first frame", f"{paced['first_frame_ms']:.0f} ms (with calibration)"),
        *((f"  {n}", f"p50 {s['p50']:.2f}  p99 {s['p99']:.2f} ms") for n, s in result["stages_ms"].items()),
        ("flat out", f"{flat_out['frames_per_s']:.1f} frames/s, {flat_out['frames_shown']} of 600 shown"),
        ("peer, 1 thread", f"{result['peer']['frame_ms']:.0f} ms a frame (mdgrappa + skimage fast NLM)"),
        ("times the peer", f"{result['times_peer']:.0f}"),
        ("peak memory", f"{result['peak_memory_mib']:.0f} MiB, daemon and all below it"),
    ]
    for name, text in rows:
        print(f"{name:<18}{text}")


if __name__ == "__main__":
    main()
