# SPDX-License-Identifier: Apache-2.0
"""The console in a real browser: from the scanner's last byte to the screen, page load, memory, many viewers.

    python benchmarks/browser.py [--seconds 40] [--minutes 0] [--json FILE]

A whole appliance runs. A scanner sends 256 x 256 images nearly 30 times a second, each with its number in black and
white blocks. In headless Chromium a script reads the number back from what the page has drawn, when the page has been
painted; Chromium's own trace says when that frame was swapped to the (software) screen. The peer is a motion JPEG
stream (multipart/x-mixed-replace, as from network cameras) of the same previews, from a process of its own, shown in
the same Chromium by an <img>. `--minutes` adds a long run that watches memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import threading
import time
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from browser_cine import BLOCK, N_BITS, RATE_HZ, SIZE, Cine, image_messages, raw_messages, scanning
from browser_peers import mjpeg, summary, view
from live import machine
from websockets.sync.server import serve

from appliance.simulate.site import Site

N_VIEWERS, N_STALLED, N_ROUNDS = 50, 10, 4
AIM_PAINTED_MS, AIM_LOAD_MS = 50.0, 1000.0
SITE = """\
site: {name: bench, data_dir: $data_dir, run_dir: $run_dir}
pipelines:
  live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages: STAGES
    sinks: [preview]
console: {port: $console, kiosk: [127.0.0.1]}
"""
RAW_STAGES = "[reconstruct, {denoise: {model: mr-denoise}}, detect_anomalies]"
_spec = importlib.util.spec_from_file_location(
    "chromium", Path(__file__).parents[1] / "tests/appliance/console/browser.py"
)
chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chromium)

# Looks at every animation frame, before it is painted, and notes when a message posted then is handled: after it.
PROBE = (
    """window.painted || (() => {
  const bits = BITS, size = SIZE, block = BLOCK;
  const probe = document.createElement("canvas");
  probe.width = bits; probe.height = 2;
  const context = probe.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingEnabled = false;
  const painted = new MessageChannel();
  const seen = [];
  let last = -1, before = 0;
  window.painted = []; window.periods = [];
  painted.port1.onmessage = () => {
    const now = performance.now();
    while (seen.length) window.painted.push([...seen.shift(), now]);
  };
  const look = (now) => {
    if (before) window.periods.push(now - before);
    before = now;
    const source = document.querySelector("#image");
    if (source && (source.naturalWidth || source.width) === size) {
      context.drawImage(source, 0, 0, size, 2 * block, 0, 0, bits, 2);
      const grey = context.getImageData(0, 0, bits, 2).data;
      let number = 0;
      for (let i = 0; i < bits; i++) number = 2 * number + (grey[4 * i] > grey[4 * (i + bits)] ? 1 : 0);
      if (number !== last) { last = number; seen.push([number, performance.now()]); painted.port2.postMessage(0); }
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})()""".replace("BITS", str(N_BITS))
    .replace("SIZE", str(SIZE))
    .replace("BLOCK", str(BLOCK))
)


def clock(page: Any) -> tuple[float, float]:
    """Return CLOCK_MONOTONIC less the page's clock, in ms, and by how much that may be wrong."""
    best = (0.0, float("inf"))
    for _ in range(100):
        before = time.monotonic_ns() * 1e-6
        there = page.ask("performance.now()")
        after = time.monotonic_ns() * 1e-6
        best = min(best, ((before + after) / 2 - there, (after - before) / 2), key=lambda one: one[1])
    return best


class Swaps:
    """When Chromium committed what the page had painted, and when it drew and swapped that: from its own trace."""

    COMMIT, DRAW = "ProxyMain::BeginMainFrame::commit", "Display::DrawAndSwap"

    def __init__(self, page: Any) -> None:
        self._page, self._over = page, False
        self._events: dict[str, list[tuple[float, float]]] = {self.COMMIT: [], self.DRAW: []}  # begin, end in ms
        page.on_event = self._take
        config = {"includedCategories": ["viz", "cc"], "excludedCategories": ["*"]}
        page.call("Tracing.start", traceConfig=config, transferMode="ReportEvents")

    def _take(self, method: str, params: dict[str, Any]) -> None:
        for one in params["value"] if method == "Tracing.dataCollected" else ():
            if one["name"] in self._events and one["ph"] == "X":
                self._events[one["name"]].append((one["ts"] * 1e-3, (one["ts"] + one["dur"]) * 1e-3))
        self._over |= method == "Tracing.tracingComplete"

    def stop(self) -> None:
        """End the trace."""
        self._page.call("Tracing.end")
        while not self._over:
            self._page.ask("0")
        for events in self._events.values():
            events.sort()

    def after(self, seen_ms: float) -> float | None:
        """Return when what was seen before the page's painting at `seen_ms` (CLOCK_MONOTONIC) was on the screen."""
        commits = [end for _, end in self._events[self.COMMIT]]
        draws = self._events[self.DRAW]
        if (n := bisect(commits, seen_ms)) == len(commits):
            return None
        n = bisect(draws, (commits[n],))
        return draws[n][1] if n < len(draws) else None


def watch(page: Any, cine: Cine, seconds: float) -> dict[str, Any]:
    """Let the page run, and return how old its images were when they had been painted, and when they were swapped."""
    page.ask(PROBE)
    page.wait_for("painted.length > 10")
    offset_ms, error_ms = clock(page)
    swaps = Swaps(page)
    page.ask("painted.splice(0), periods.splice(0), 0")
    n_before = len(cine.sent_ns)
    time.sleep(seconds)
    painted, periods = page.ask("[painted.splice(0), periods.splice(0)]")
    n_sent = len(cine.sent_ns) - n_before
    swaps.stop()
    swapped = [(int(number), swaps.after(seen + offset_ms)) for number, seen, _ in painted]
    return {
        "images_sent": n_sent,
        "images_painted": len(painted),
        "painted_ms": [cine.age_ms(int(number), at + offset_ms) for number, _, at in painted],
        "swapped_ms": [cine.age_ms(number, at) for number, at in swapped if at],  # the last are not in the trace
        "animation_frame_ms": periods,
        "clock_error_ms": error_ms,
        "clock_drift_ms": clock(page)[0] - offset_ms,
    }


def load(page: Any, url: str, n: int = 7) -> dict[str, float]:
    """Load the page again and again; return medians in ms since the navigation began."""
    times = []
    for _ in range(n):
        page.open("about:blank")
        page.open(url)
        page.ask(PROBE)
        page.wait_for("painted.length")
        times.append(
            page.ask(
                "(() => { const [page] = performance.getEntriesByType('navigation');"
                "const [first] = performance.getEntriesByName('first-contentful-paint');"
                "return [page.loadEventEnd, first.startTime, painted[0][2]]; })()"
            )
        )
    names = ("load_event_ms", "first_paint_ms", "first_image_ms")
    return dict(zip(names, np.median(times, axis=0).tolist(), strict=True))


def echo_floor(page: Any, n: int = 200) -> dict[str, float]:
    """A message of one preview's size from the page to a plain WebSocket server and back, halved."""
    with serve(lambda socket: [socket.send(data) for data in socket], "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.socket.getsockname()[1]
        trips = page.ask(
            f"""new Promise((done) => {{
              const socket = new WebSocket("ws://127.0.0.1:{port}/"), data = new Uint8Array({SIZE * SIZE}), trips = [];
              socket.binaryType = "arraybuffer";
              let sent;
              const send = () => {{ sent = performance.now(); socket.send(data); }};
              socket.onopen = send;
              socket.onmessage = () => {{
                trips.push((performance.now() - sent) / 2);
                if (trips.length < {n}) send(); else {{ socket.close(); done(trips); }}
              }};
            }})"""
        )
        server.shutdown()
    return summary(trips)


def memory(page: Any, site: Site, cine: Cine, minutes: float) -> dict[str, Any]:
    """Watch the page's heap and the console's memory; return their slopes and the samples."""
    console = psutil.Process(site.status["console"]["pid"])
    page.call("HeapProfiler.enable")
    page.call("Performance.enable")
    samples: list[tuple[float, float, float, float]] = []
    painted: list[list[float]] = []
    offset_ms, _ = clock(page)
    begin_s = time.monotonic()
    while (now_s := time.monotonic() - begin_s) < minutes * 60 or len(samples) < 4:
        painted += page.ask("periods.splice(0), painted.splice(0)")
        page.call("HeapProfiler.collectGarbage")
        metrics = {one["name"]: one["value"] for one in page.call("Performance.getMetrics")["metrics"]}
        samples.append(
            (now_s / 60, metrics["JSHeapUsedSize"] / 2**20, console.memory_info().rss / 2**20, metrics["Nodes"])
        )
        time.sleep(min(10.0, minutes * 6))
    times, heap, rss, nodes = np.transpose(samples)
    late = len(times) // 5  # caches fill first
    return {
        "minutes": float(times[-1]),
        "page_heap_mib": [float(heap[late]), float(heap[-1])],
        "page_heap_mib_per_hour": 60 * float(np.polyfit(times[late:], heap[late:], 1)[0]),
        "page_nodes": [float(nodes[late]), float(nodes[-1])],
        "console_mib": [float(rss[late]), float(rss[-1])],
        "console_mib_per_hour": 60 * float(np.polyfit(times[late:], rss[late:], 1)[0]),
        "painted_ms": summary([cine.age_ms(int(number), at + offset_ms) for number, _, at in painted]),
        "samples": samples,
    }


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Put rounds together: what was counted is added, times are summed up."""
    added = {name: sum(one[name] for one in rounds) for name in ("images_sent", "images_painted")}
    ages = ("painted_ms", "swapped_ms", "animation_frame_ms")
    summaries = {name: summary([value for one in rounds for value in one[name]]) for name in ages}
    worst = {name: max((one[name] for one in rounds), key=abs) for name in ("clock_error_ms", "clock_drift_ms")}
    return {**added, **summaries, **worst, "rounds_p95_ms": [summary(one["painted_ms"])["p95"] for one in rounds]}


@contextmanager
def running(folder: Path, stages: str) -> Iterator[Site]:
    """Run an appliance; give it."""
    folder.mkdir()
    site = Site(folder, SITE.replace("STAGES", stages), ports=("mrd", "console"))
    try:
        site.start()
        yield site
    finally:
        site.stop()


def url_of(site: Site) -> str:
    return f"http://127.0.0.1:{site.ports['console']}/"


def measure_images(options: argparse.Namespace, page: Any, folder: Path) -> dict[str, Any]:
    """Finished images: what the console itself costs, beside the peer."""
    result: dict[str, Any] = {}
    rounds: dict[str, list[dict[str, Any]]] = {"console": [], "mjpeg": []}
    with running(folder / "images", "[]") as site, scanning(site, image_messages()) as cine:
        result["load"] = load(page, url_of(site))
        for _ in range(N_ROUNDS):
            page.open(url_of(site))
            rounds["console"].append(watch(page, cine, options.seconds / N_ROUNDS))
            with mjpeg(site) as address:
                page.open(address)
                rounds["mjpeg"].append(watch(page, cine, options.seconds / N_ROUNDS))
                page.open(f"{address}empty")
                result["echo_floor_ms"] = echo_floor(page)
        result.update({name: together(of_one) for name, of_one in rounds.items()})
        if options.minutes:
            page.open(url_of(site))
            page.ask(PROBE)
            result["memory"] = memory(page, site, cine, options.minutes)
        page.open("about:blank")
        result["viewers"] = [view(site, N_VIEWERS - N_STALLED, n, options.seconds) for n in (0, N_STALLED)]
    return result


def measure_raw(options: argparse.Namespace, page: Any, folder: Path) -> dict[str, Any]:
    """Raw data through the whole graph."""
    with running(folder / "raw", RAW_STAGES) as site, scanning(site, raw_messages(), raw=True) as cine:
        page.open(url_of(site))
        rounds = [watch(page, cine, options.seconds / N_ROUNDS) for _ in range(1 + N_ROUNDS)]
        return {"raw": together(rounds[1:])}  # the first is the start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg()[0], "rate_hz": RATE_HZ}
    with (
        tempfile.TemporaryDirectory(prefix="nearscan-bench-") as name,
        chromium.Browser(Path(name) / "profile") as page,
    ):
        result |= measure_images(options, page, Path(name))
        result |= measure_raw(options, page, Path(name))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def _line(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {values[name]:.1f}" for name in ("p50", "p95", "p99", "max")) + " ms"


def show(result: dict[str, Any]) -> None:
    ours, raw, peer, load_ms = (result[name] for name in ("console", "raw", "mjpeg", "load"))
    alone, crowd = result["viewers"]
    rows = [
        (
            "machine",
            f"{result['machine']['cpu']}, {result['machine']['cores']} cores, load {result['load_average']:.1f} before",
        ),
        ("painted", f"{_line(ours['painted_ms'])}  (aim: p95 under {AIM_PAINTED_MS:.0f})"),
        ("  swapped to the screen", _line(ours["swapped_ms"])),
        ("", f"{ours['images_painted']} of {ours['images_sent']} images at {result['rate_hz']:g}/s"),
        ("peer: motion JPEG", _line(peer["painted_ms"])),
        ("  swapped to the screen", _line(peer["swapped_ms"])),
        ("", f"{peer['images_painted']} of {peer['images_sent']} images"),
        ("with the whole graph", f"{_line(raw['painted_ms'])}  (reconstruct, denoise, detect)"),
        ("  swapped to the screen", _line(raw["swapped_ms"])),
        ("", f"{raw['images_painted']} of {raw['images_sent']} images"),
        ("p95, peer / ours", f"{peer['painted_ms']['p95'] / ours['painted_ms']['p95']:.2f}"),
        ("floor: animation frame", _line(ours["animation_frame_ms"])),
        ("floor: 64 kB one way", _line(result["echo_floor_ms"])),
        ("clock of the page", f"within {ours['clock_error_ms']:.2f} ms, drift {ours['clock_drift_ms']:+.2f} ms"),
        ("page load", "  ".join(f"{name[:-3].replace('_', ' ')} {ms:.0f}" for name, ms in load_ms.items()) + " ms"),
        (f"{alone['reading']} viewers", f"{_line(alone['age_ms'])}, {alone['images_lost_in_all']} images lost"),
        (
            f"and {crowd['stalled']} stalled",
            f"{_line(crowd['age_ms'])}, {crowd['images_lost_in_all']} images lost, p99 moved by "
            f"{crowd['age_ms']['p99'] - alone['age_ms']['p99']:+.1f} ms",
        ),
    ]
    if "memory" in result:
        kept = result["memory"]
        for name in ("page_heap", "console"):
            first, last = kept[f"{name}_mib"]
            slope = kept[f"{name}_mib_per_hour"]
            rows.append(
                (f"memory: {name.replace('_', ' ')}", f"{first:.1f} to {last:.1f} MiB, {slope:+.1f} MiB an hour")
            )
        rows.append((f"painted, {kept['minutes']:.0f} minutes", _line(kept["painted_ms"])))
    for name, text in rows:
        print(f"{name:<24}{text}")


if __name__ == "__main__":
    main()
