# SPDX-License-Identifier: Apache-2.0
"""`nearscan demo ultrasound`: a simulated tracked machine and a navigation display around a running appliance.

The tools go out of sight in between, and the machine stops at the end: no picture may be shown at a wrong place, and
the display has to be told.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from appliance.frames import Affine
from appliance.igtl import Image, Message, Status
from appliance.latency import Latency
from appliance.live.igtl_client import Client
from appliance.simulate.site import Site
from appliance.simulate.ultrasound import UltrasoundServer, phantom_pictures, stream
from appliance.ultrasound.phantom import IMAGE_TO_PROBE, probe_to_reference
from appliance.ultrasound.place_image import image_in_lps

RATE_HZ = 15.0
MISSING_S = 2.0  # of every ten
NEAR_NS = int(0.4e9 / RATE_HZ)  # a picture shown is the one sent at that time
LARGEST_ERROR_MM = 1e-3  # float32 on the wire, at 300 mm
_SETTLE_S = 2.5  # the display is told, and the last status comes once a second

_SITE = """\
site: {name: demo, data_dir: $data_dir, run_dir: $run_dir, device: auto}
pipelines:
  or-live:
    source:
      openigtlink:
        host: 127.0.0.1
        port: $machine
        probe: ProbeToTracker
        reference: ReferenceToTracker
        image_to_probe: [$calibration]
        image_px: [300, 256]
        tools: {Stylus: StylusToTracker}
    stages: [{denoise: {model: us-despeckle}}, detect_anomalies]
    sinks: [{openigtlink: {port: $display, protocol: 3}}, volume, preview]
console: {port: $console, kiosk: [127.0.0.1]}
"""


@dataclass
class Shown:
    """What the navigation display got, by the time of acquisition where it is an image."""

    placed: dict[int, tuple[Affine, int]] = field(default_factory=dict)  # affine (LPS), arrival (CLOCK_MONOTONIC)
    unplaced: list[int] = field(default_factory=list)
    states: list[tuple[str, int]] = field(default_factory=list)  # name and arrival of each change

    def take(self, message: Message, received_ns: int) -> None:
        """Note a message."""
        content = message.content
        if isinstance(content, Image):
            if message.device_name.endswith("_untracked"):
                self.unplaced.append(message.time_ns)
            else:
                self.placed[message.time_ns] = (content.affine, received_ns)
        elif isinstance(content, Status) and (not self.states or self.states[-1][0] != content.name):
            self.states.append((content.name, received_ns))


@dataclass
class Sent:
    """When each picture was sent: its time stamp (UTC) and CLOCK_MONOTONIC; whether the tools were in sight."""

    stamps_ns: list[int] = field(default_factory=list)
    left_ns: list[int] = field(default_factory=list)

    def add(self, number: int, time_ns: int) -> None:
        """Note picture `number`."""
        del number
        self.stamps_ns.append(time_ns)
        self.left_ns.append(time.monotonic_ns())

    def number_of(self, time_ns: int) -> int | None:
        """Which picture was sent at `time_ns`, None where none was."""
        nearest = int(np.argmin(np.abs(np.array(self.stamps_ns) - time_ns)))
        return nearest if abs(self.stamps_ns[nearest] - time_ns) < NEAR_NS else None


def is_in_sight(number: int) -> bool:
    """Whether the tools are seen in picture `number`."""
    return (number / RATE_HZ) % 10 < 10 - MISSING_S


def truth(number: int) -> Affine:
    """Return where picture `number` is: pixel index to LPS mm of the reference."""
    return image_in_lps(probe_to_reference(number / RATE_HZ) @ IMAGE_TO_PROBE)


def account(sent: Sent, shown: Shown, status: dict[str, Any]) -> dict[str, Any]:
    """Return what went in, what the display got, and how well it was placed."""
    latency, errors_mm, misplaced = Latency(), [], 0
    for time_ns, (affine, arrived_ns) in shown.placed.items():
        number = sent.number_of(time_ns)
        if number is None or not is_in_sight(number):
            misplaced += 1
            continue
        latency.add_ns(arrived_ns - sent.left_ns[number])
        errors_mm.append(_apart_mm(affine, truth(number)))
    ended_ns = sent.left_ns[-1]
    told_ns = [arrived_ns for name, arrived_ns in shown.states if name == "STALE" and arrived_ns > ended_ns]
    volume = status.get("sinks", {}).get("volume", {})
    return {
        "pictures": {
            "sent": len(sent.stamps_ns),
            "in": status.get("source", {}).get("frames", 0),
            "placed": len(shown.placed),
            "without_place": len(shown.unplaced),
            "misplaced": misplaced,
        },
        "place_error_mm": max(errors_mm, default=None),
        "latency_ms": latency.summary_ms(),
        "told_stale_ms": round((told_ns[0] - ended_ns) / 1e6) if told_ns else None,
        "states": [name for name, _ in shown.states],
        "volume": volume,
    }


def _apart_mm(one: Affine, other: Affine) -> float:
    """Largest distance between the corners of a picture of 256 x 300 pixels at two places."""
    corners = np.array([[0, 0, 0, 1], [299, 0, 0, 1], [0, 255, 0, 1], [299, 255, 0, 1]]).T
    return float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())


def is_good(result: dict[str, Any]) -> bool:
    """Whether pictures were shown where they were, or as not placed, and the display was told that they stopped."""
    pictures, error_mm = result["pictures"], result["place_error_mm"]
    return bool(
        pictures["misplaced"] == 0
        and pictures["placed"] > 0
        and error_mm is not None
        and error_mm <= LARGEST_ERROR_MM
        and "TRACKING INVALID" in result["states"]
        and result["told_stale_ms"] is not None
    )


def table(result: dict[str, Any]) -> str:
    """Return the account for people."""
    pictures, latency, volume = result["pictures"], result["latency_ms"], result["volume"]
    lines = [
        ("pictures", f"{pictures['sent']} sent, {pictures['in']} in"),
        ("display", f"{pictures['placed']} at their place, {pictures['without_place']} marked as without one"),
        ("misplaced", f"{pictures['misplaced']}; largest error {result['place_error_mm']:.1e} mm"),
        ("latency", "  ".join(f"{name} {latency[name]:.1f} ms" for name in ("p50", "p95", "p99", "max") if latency)),
        ("told stale", f"{result['told_stale_ms']} ms after the last picture"),
        ("volume", f"{volume.get('shape')} voxels, {100 * volume.get('filled', 0):.0f} % of it filled"),
    ]
    return "\n".join(f"  {name:<12}  {text}" for name, text in lines)


def run_demo(seconds: float, json_file: Path | None, keep: bool) -> int:
    """Run it in a folder of its own; return 0 when all is as it should be."""
    with tempfile.TemporaryDirectory(prefix="nearscan-demo-") as folder:
        calibration = ", ".join(str(number) for number in IMAGE_TO_PROBE[:3].ravel())
        site = Site(Path(folder), _SITE.replace("$calibration", calibration), ports=("machine", "display", "console"))
        try:
            return _run(site, seconds, json_file, keep)
        except KeyboardInterrupt:
            return 130
        finally:
            site.stop()


def _run(site: Site, seconds: float, json_file: Path | None, keep: bool) -> int:
    machine, shown, sent, stop = UltrasoundServer(site.ports["machine"]), Shown(), Sent(), threading.Event()
    click.echo(f"  starting      appliance in {site.folder}")
    site.start()
    click.echo(f"  console       http://127.0.0.1:{site.ports['console']}/   (research use only)")
    display = Client("127.0.0.1", site.ports["display"], on_message=shown.take, on_state=lambda state: None)
    display.start()
    machine.connected.wait(30)

    def on_frame(number: int, time_ns: int) -> None:
        sent.add(number, time_ns)
        if number % int(2 * RATE_HZ) == 0:
            state = shown.states[-1][0] if shown.states else "nothing yet"
            click.echo(
                f"  {number / RATE_HZ:5.0f} s       {len(shown.placed)} shown at their place; the display: {state}"
            )

    pictures = phantom_pictures(RATE_HZ)
    n_frames = int(seconds * RATE_HZ)
    stream(machine, pictures, rate_hz=RATE_HZ, stop=stop, n_frames=n_frames, missing_s=MISSING_S, on_frame=on_frame)
    click.echo(f"{'':15}-- the machine stops --")
    time.sleep(_SETTLE_S)
    display.close()
    result = account(sent, shown, site.status["pipeline-or-live"])
    click.echo(table(result))
    if json_file:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    good = is_good(result)
    click.echo("  every picture is where it was, or says that it has no place" if good else "  NOT as it should be")
    if keep:
        click.echo("  sending on    until Ctrl-C")
        stream(machine, pictures, rate_hz=RATE_HZ, stop=stop, missing_s=MISSING_S)
    return 0 if good else 1
