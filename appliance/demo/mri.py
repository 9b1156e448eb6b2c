# SPDX-License-Identifier: Apache-2.0
"""`nearscan demo mri`: a simulated scanner, display and PACS around a running appliance; an account of every image."""

from __future__ import annotations

import json
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from appliance.console.accounts import Accounts, accounts_file
from appliance.latency import Latency
from appliance.mri.phantom import BREATH_FRAMES, cine_kspace
from appliance.simulate.display import Display
from appliance.simulate.mri import ScannerResult, stream_cine
from appliance.simulate.pacs import count
from appliance.simulate.site import Site

RATE_HZ = 15.0
MATRIX = (192, 192)
N_COILS = 8
DRAIN_S = 90.0

_SITE = """\
site: {name: demo, data_dir: $data_dir, run_dir: $run_dir, device: auto}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: $pacs, ae_title: DEMOPACS}}
pipelines:
  mri-live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages:
      - reconstruct: {method: grappa}
      - denoise: {model: mr-denoise}
      - detect_anomalies
    sinks:
      - mrd_reply
      - openigtlink: {port: $display, protocol: 3}
      - dicom_results: {to: [pacs]}
      - preview
buffer: {reserve_gb: 0.2, retry_min_s: 0.5, retry_max_s: 2.0}
console: {port: $console, kiosk: [127.0.0.1]}
"""


@dataclass(frozen=True)
class Planted:
    """A fault that the simulated scanner makes in frames first…last."""

    kind: str
    coil: int
    first: int
    last: int

    def damage(self, kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
        """Return a copy of (coil, ky, kx) with the fault in it."""
        kspace = kspace.copy()
        if self.kind == "coil_drop":
            kspace[self.coil] = 0
        else:  # an RF spike: one sample, on a line that R=2 acquires, far from the centre
            kspace[self.coil, MATRIX[0] // 4 // 2 * 2, MATRIX[1] // 5] += np.abs(kspace).max()
        return kspace

    def is_found_by(self, event: dict[str, Any]) -> bool:
        """Whether `event` of detect_anomalies is this fault: same kind, coil and frames."""
        frames = (event["sequence"], event["last_sequence"])
        return (event["kind"], event["where"].get("coil"), *frames) == (self.kind, self.coil, self.first, self.last)


def plant(n_frames: int) -> list[Planted]:
    """Two spikes and a coil that drops out for a while, where the baselines have settled."""
    spike, drop, last = (int(n_frames * part) for part in (0.3, 0.5, 0.8))
    return [
        Planted("spike", 3, spike, spike),
        Planted("coil_drop", 5, drop, drop + 9),
        Planted("spike", 6, last, last),
    ]


class Demo:
    """One run: a site, a PACS, and the faults that the scanner will make."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.n_frames = int(seconds * RATE_HZ)
        self.planted = plant(self.n_frames)
        self.n_told = 0  # findings printed so far
        self.site = Site(folder, _SITE, ports=("mrd", "display", "pacs", "console"))
        self.ports = self.site.ports
        self.password = secrets.token_urlsafe(12)
        self.site.data_dir.mkdir(mode=0o750)
        Accounts(accounts_file(self.site.settings)).add("demo", "engineer", self.password)
        self.pacs_folder = folder / "pacs"
        self.pacs_folder.mkdir()

    def start_pacs(self) -> None:
        """Start, or start again, the embedded PACS."""
        port, folder = str(self.ports["pacs"]), str(self.pacs_folder)
        self.site.command("pacs", "simulate", "pacs", "--folder", folder, "--port", port, "--ae-title", "DEMOPACS")

    def kill_pacs(self) -> None:
        """As a power cut would."""
        self.site.stop_process("pacs", signal.SIGKILL)

    @property
    def stages(self) -> dict[str, Any]:
        """The newest status of the pipeline's stages; empty before its first."""
        return dict(self.site.status.get("pipeline-mri-live", {}).get("stages", {}))


def _frames(demo: Demo) -> Iterator[NDArray[np.complex64]]:
    """The cine, its faults planted. One breath is made beforehand and repeated."""
    breath = [cine_kspace(n, MATRIX, N_COILS) for n in range(min(BREATH_FRAMES, demo.n_frames))]
    for n in range(demo.n_frames):
        kspace = breath[n % len(breath)]
        for fault in demo.planted:
            if fault.first <= n <= fault.last:
                kspace = fault.damage(kspace)
        yield kspace


def _scan(demo: Demo) -> tuple[ScannerResult, Display]:
    """Stream the cine, take the PACS away for the middle third, show progress."""
    display = Display("127.0.0.1", demo.ports["display"])
    outage = {demo.n_frames // 3: demo.kill_pacs, 2 * demo.n_frames // 3: demo.start_pacs}

    def on_frame(n: int) -> None:
        if n in outage:
            click.echo(f"{'':15}-- the PACS {'goes away' if outage[n] == demo.kill_pacs else 'is back'} --")
            outage[n]()
        if n % int(2 * RATE_HZ) == 0:
            click.echo(_progress(demo, n, display))

    result = stream_cine(
        "127.0.0.1",
        demo.ports["mrd"],
        _frames(demo),
        acceleration=2,
        n_calibration_lines=24,
        frame_rate_hz=RATE_HZ,
        on_frame=on_frame,
    )
    return result, display


def _progress(demo: Demo, n: int, display: Display) -> str:
    counts = demo.site.counts()
    found = [event["message"] for event in demo.stages.get("detect_anomalies", {}).get("events", [])]
    new, demo.n_told = found[demo.n_told :], len(found)
    line = (
        f"  {n / RATE_HZ:5.0f} s       {n} frames sent, {display.shown.n_images} shown, "
        f"{counts['produced']} results, {_delivered(counts)} delivered, {counts['jobs']} to build"
    )
    return "\n".join([line, *(f"{'':15}-- found: {message} --" for message in new)])


def _delivered(counts: dict[str, Any]) -> int:
    return int(counts["sent"] + counts["verified"] + counts["committed"])


def _wait_for_delivery(demo: Demo) -> dict[str, Any]:
    """Wait until nothing is owed any more, or DRAIN_S; return the buffer's counts."""
    deadline = time.monotonic() + DRAIN_S
    while True:
        counts = demo.site.counts()
        if time.monotonic() > deadline or not (counts["jobs"] or counts["queued"] or counts["sending"]):
            return counts
        click.echo(f"  waiting       {_delivered(counts)} of {counts['produced']} results delivered")
        time.sleep(1.0)


def account(demo: Demo, scanner: ScannerResult, display: Display, counts: dict[str, Any]) -> dict[str, Any]:
    """Return what went in, what came out, and what is missing."""
    stages = demo.stages
    n_in = demo.site.status["pipeline-mri-live"]["frames"]["in"]
    events = stages["detect_anomalies"]["events"]
    missed = [fault for fault in demo.planted if not any(fault.is_found_by(event) for event in events)]
    false = [event for event in events if not any(fault.is_found_by(event) for fault in demo.planted)]
    owed = 2 * n_in - stages["denoise"]["passed_through"]  # reconstructed, and denoised where it was
    at_pacs = count(demo.pacs_folder)
    return {
        "frames": {
            "sent": demo.n_frames,
            "in": n_in,
            "scanner_out": len(scanner.images),
            "displayed": display.shown.n_images,
            "passed_through": {name: stage["passed_through"] for name, stage in stages.items()},
        },
        "latency_ms": {
            "display": _display_latency(scanner, display),
            **{name: stage["latency_ms"] for name, stage in stages.items()},
        },
        "anomalies": {
            "planted": [vars(fault) for fault in demo.planted],
            "found": len(demo.planted) - len(missed),
            "missed": [vars(fault) for fault in missed],
            "false": false,
        },
        "results": {
            "produced": counts["produced"],
            "delivered": _delivered(counts),
            "committed": counts["committed"],
            "at_pacs": at_pacs,
            "lost": owed - min(at_pacs, _delivered(counts)),
        },
        "alarms": {name: each.get("alarms", {}) for name, each in demo.site.status.items()},
    }


def _display_latency(scanner: ScannerResult, display: Display) -> dict[str, float]:
    """Last byte of a frame sent -> last byte of its image at the display."""
    latency = Latency()
    for (_, sequence), arrived_ns in display.shown.arrived_ns.items():
        latency.add_ns(arrived_ns - scanner.sent_ns[sequence])
    return latency.summary_ms()


def is_good(result: dict[str, Any]) -> bool:
    """Whether every frame came back, every result arrived, and the faults found are those planted."""
    frames, results, anomalies = result["frames"], result["results"], result["anomalies"]
    return bool(
        frames["sent"] == frames["in"] == frames["scanner_out"]
        and results["lost"] == 0
        and results["delivered"] == results["produced"]
        and not anomalies["missed"]
        and not anomalies["false"]
    )


def table(result: dict[str, Any]) -> str:
    """Return the account for people."""
    frames, results, anomalies = result["frames"], result["results"], result["anomalies"]
    latency = result["latency_ms"]["display"]
    lines = [
        ("frames", f"{frames['sent']} sent, {frames['in']} in, {frames['scanner_out']} back at the scanner"),
        ("display", f"{frames['displayed']} images (newest wins)"),
        ("latency", "  ".join(f"{name} {latency[name]:.1f} ms" for name in ("p50", "p95", "p99", "max") if latency)),
        ("anomalies", f"{anomalies['found']} of {len(anomalies['planted'])} found, {len(anomalies['false'])} false"),
        ("results", f"{results['produced']} produced, {results['delivered']} delivered, {results['at_pacs']} at PACS"),
        ("lost", str(results["lost"])),
    ]
    return "\n".join(f"  {name:<12}  {text}" for name, text in lines)


def run_demo(seconds: float, json_file: Path | None, keep: bool) -> int:
    """Run it all in a folder of its own; return 0 when nothing is missing."""
    with tempfile.TemporaryDirectory(prefix="nearscan-demo-") as folder:
        demo = Demo(Path(folder), seconds)
        try:
            return _run(demo, json_file, keep)
        except KeyboardInterrupt:
            return 130
        finally:
            demo.site.stop()


def _run(demo: Demo, json_file: Path | None, keep: bool) -> int:
    click.echo(f"  starting      appliance and PACS in {demo.site.folder}")
    demo.start_pacs()
    demo.site.start()
    click.echo(f"  console       http://127.0.0.1:{demo.ports['console']}/   (research use only)")
    click.echo(f"  sign in       as demo with password {demo.password} for more than the live image")
    scanner, display = _scan(demo)
    counts = _wait_for_delivery(demo)
    time.sleep(1.5)  # the last status is published once a second
    display.close()
    result = account(demo, scanner, display, counts)
    click.echo(table(result))
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    good = is_good(result)
    click.echo("  every image is accounted for" if good else "  NOT as it should be: see the table")
    if keep:
        click.echo("  staying up    until Ctrl-C")
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0 if good else 1
