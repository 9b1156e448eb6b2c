# SPDX-License-Identifier: Apache-2.0
"""The live path: 256 x 256, 8 coils, R=2, from the scanner's last byte to the display's last byte.

    python benchmarks/live.py [--seconds 30] [--rate 60] [--record] [--json FILE]

A whole appliance runs (daemon, pipeline process); scanner and display are this process. The peer does the same
mathematics to the same frames in the same run: pygrappa.mdgrappa, then skimage's fast non-local means.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")  # the peer's denominator is one thread

import numpy as np
import psutil
import scipy.fft
from pygrappa import mdgrappa
from skimage.restoration import denoise_nl_means

from appliance.mrd.header import encode_header_xml
from appliance.mrd.messages import encode_acquisitions, encode_config_file, encode_header
from appliance.mri.phantom import NOISE_STD, cine_kspace
from appliance.simulate.display import Display
from appliance.simulate.mri import Scanner, cine_encoding, cine_lines
from appliance.simulate.site import Site

MATRIX, N_COILS, R, N_CALIBRATION = (256, 256), 8, 2, 24
SIGMA = NOISE_STD * R**0.5  # known to the peer; ours measures it
N_DISTINCT = 72  # frames made beforehand and repeated: three heart beats
SITE = """\
site: {name: bench, data_dir: $data_dir, run_dir: $run_dir}
pipelines:
  live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1RECORD}}
    stages: [reconstruct, {denoise: {model: mr-denoise}}, detect_anomalies]
    sinks: [{openigtlink: {port: $display, protocol: 3}}]
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


def instrument(priority: int) -> None:
    """Let this process measure the appliance and not its own wait for a core (a scanner has its own)."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        print("no real-time priority for scanner and display: the figures hold their own delays too")


def watch(port: int, pipe: Connection) -> None:
    """Be a display in a process of its own; when asked, hand over when each image's last byte came."""
    instrument(40)
    display = Display("127.0.0.1", port)
    pipe.send("ready")
    pipe.recv()
    display.close()
    pipe.send(display.shown.arrived_ns)


def send(site: Site, messages: list[bytes], n_frames: int, rate_hz: float) -> list[int]:
    """Send frames encoded beforehand; return when the last byte of each was handed over."""
    scanner = Scanner("127.0.0.1", site.ports["mrd"], 60.0)
    header = encode_header_xml(cine_encoding((N_COILS, *MATRIX), R))
    scanner.send(encode_config_file("bench") + encode_header(header))
    begin = time.monotonic()
    for n in range(n_frames):
        time.sleep(max(0.0, begin + n / rate_hz - time.monotonic()))
        scanner.send(messages[0 if n == 0 else 1 + (n - 1) % (len(messages) - 1)])
        scanner.result.sent_ns.append(time.monotonic_ns())
    return scanner.finish().sent_ns


def stream(site: Site, messages: list[bytes], n_frames: int, rate_hz: float) -> dict:
    """Stream and return what the display saw."""
    pipe, other = multiprocessing.Pipe()
    display = multiprocessing.get_context("spawn").Process(target=watch, args=(site.ports["display"], other))
    display.start()
    pipe.recv()
    sent_ns = send(site, messages, n_frames, rate_hz)
    time.sleep(1.0)
    pipe.send("stop")
    arrived_ns = pipe.recv()
    display.join()
    arrived = {sequence: ns for (_, sequence), ns in arrived_ns.items()}
    ages_ms = {sequence: (ns - sent_ns[sequence]) * 1e-6 for sequence, ns in sorted(arrived.items())}
    in_time = [sequence for sequence, age in ages_ms.items() if age <= 1e3 / rate_hz]
    caught_up = min(in_time, default=0)  # the first frame of the scan that is shown within its own frame time
    return {
        "frames_sent": n_frames,
        "frames_shown": len(arrived),
        "frames_per_s": (n_frames - 1) / ((max(arrived.values()) - sent_ns[0]) * 1e-9),
        "first_frame_ms": ages_ms.get(0),
        "caught_up_at_frame": caught_up,
        "latency_ms": _summary([age for sequence, age in ages_ms.items() if sequence >= caught_up]),
        "latency_with_start_ms": _summary(list(ages_ms.values())),
    }


def _summary(ages_ms: list[float]) -> dict[str, float]:
    names = ("p50", "p95", "p99", "p99_9", "max")
    values = np.percentile(ages_ms, [50, 95, 99, 99.9, 100])
    return {
        **dict(zip(names, values.tolist(), strict=True)),
        "max_over_mean": float(np.max(ages_ms) / np.mean(ages_ms)),
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


def floor(rate_hz: float, n_ticks: int = 600) -> dict[str, float]:
    """This machine's own jitter: the same FFT work on every tick, about 8 ms of it, in an otherwise idle process."""
    instrument(20)
    lines = cine_kspace(0, MATRIX, N_COILS)[:, ::R].copy()
    begin = time.monotonic()
    ages_ms = []
    for n in range(n_ticks):
        due = begin + n / rate_hz
        time.sleep(max(0.0, due - time.monotonic()))
        for _ in range(5):
            scipy.fft.ifft2(lines)
        ages_ms.append((time.monotonic() - due) * 1e3)
    return _summary(ages_ms)


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "system": platform.release()}


def _line(latency: dict[str, float]) -> str:
    figures = "  ".join(f"{name} {latency[name]:.2f}" for name in ("p50", "p95", "p99", "p99_9", "max"))
    return f"{figures} ms  max/mean {latency['max_over_mean']:.2f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--rate", type=float, default=60.0)
    arguments.add_argument("--peer-frames", type=int, default=3)
    arguments.add_argument("--record", action="store_true", help="Let the source record what it receives.")
    arguments.add_argument("--json", type=Path)
    options = arguments.parse_args()
    frames = [cine_kspace(n, MATRIX, N_COILS) for n in range(N_DISTINCT)]
    lines = (cine_lines(kspace, n, R, N_CALIBRATION if n == 0 else 0) for n, kspace in enumerate(frames))
    messages = [encode_acquisitions(*each) for each in lines]
    instrument(30)
    with tempfile.TemporaryDirectory(prefix="nearscan-bench-") as folder:
        yaml = SITE.replace("RECORD", ", record: {max_gb: 8}" if options.record else "")
        site = Site(Path(folder), yaml, ports=("mrd", "display"))
        try:
            site.start()
            memory = Memory(site.processes["appliance"].pid)
            stream(site, messages, 60, options.rate)  # warm
            paced = stream(site, messages, int(options.seconds * options.rate), options.rate)
            time.sleep(1.5)
            status = site.status["pipeline-live"]
            flat_out = stream(site, messages, 600, 10_000.0)
            peak_mib = memory.stop()
        finally:
            site.stop()
    jitter = floor(options.rate)
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    peers = peer(frames, options.peer_frames)
    ours_ms = 1e3 / flat_out["frames_per_s"]
    result = {
        "machine": machine(),
        "rate_hz": options.rate,
        "recording": status["source"].get("recording"),
        "paced": paced,
        "inside_ms": {
            "last byte to graph": status["frames"]["latency_ms"],
            **{f"in {name}": stage["latency_ms"] for name, stage in status["stages"].items()},
            "last byte to sink": status["sinks"]["openigtlink"]["latency_ms"],
        },
        "denoise": {key: status["stages"]["denoise"][key] for key in ("backend", "precision")},
        "flat_out": flat_out,
        "jitter_floor_ms": jitter,
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
        ("end to end", _line(latency)),
        ("with the start", _line(paced["latency_with_start_ms"])),
        (
            "the start",
            f"first frame {paced['first_frame_ms']:.0f} ms (it waits for its own calibration); "
            f"the first in time is frame {paced['caught_up_at_frame']}",
        ),
        *((f"  {n}", f"p50 {s['p50']:.2f}  p99 {s['p99']:.2f} ms") for n, s in result["inside_ms"].items()),
        ("flat out", f"{flat_out['frames_per_s']:.1f} frames/s, {flat_out['frames_shown']} of 600 shown"),
        ("jitter floor", _line(result["jitter_floor_ms"]) + "  (bare FFT loop of about as much work)"),
        ("peer, 1 thread", f"{result['peer']['frame_ms']:.0f} ms a frame (mdgrappa + skimage fast NLM)"),
        ("times the peer", f"{result['times_peer']:.0f}"),
        *([("recorded", str(result["recording"]))] if result["recording"] else []),
        ("peak memory", f"{result['peak_memory_mib']:.0f} MiB, daemon and all below it"),
    ]
    for name, text in rows:
        print(f"{name:<22}{text}")


if __name__ == "__main__":
    main()
