# SPDX-License-Identifier: Apache-2.0
"""How fast tracked frames are compounded: ours against numpy (add.at, bincount) on the same frames, one thread each.

    .venv/bin/python benchmarks/compound.py [--json FILE]

820 x 616 pixels as in the shared freehand sweep, or the simulated one where that is absent; voxels of 0.5 mm. All three
give the same volume, but for rounding: the largest difference is printed. Ratios are medians of rounds that take turns.
The floor is reading the frame and writing each of its pixels' voxels once, at the speed of a copy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.imaging.metaimage import read_metaimage
from appliance.ultrasound import phantom
from appliance.ultrasound.compound import Compound
from appliance.ultrasound.place_image import calibration
from benchmarks.grappa import machine

SPINE = Path(__file__).parents[1] / "../shared/data/us_tracked/TestImages/SpinePhantomFreehand.igs.mha"
# of that sweep: PLUS's configuration PlusDeviceSet_SpinePhantomFreehandReconstructionOnly
_CALIBRATION = """-0.00157821  0.0785919  -0.00803285  15.3978
                  -0.0839128   0.00372697  0.0153803   49.5705
                   0.0159024   0.00714276  0.0803604   -8.63446"""
IMAGE_TO_PROBE = calibration([float(number) for number in _CALIBRATION.split()])
SPACING_MM, MANY = 0.5, 64 << 20
Method = Literal["linear", "nearest"]
Sweep = list[tuple[NDArray[np.float32], NDArray[np.float64]]]


def sweep() -> Sweep:
    """Frames with their affines."""
    if not SPINE.exists():
        places = [phantom.probe_to_reference(n / 15) @ phantom.IMAGE_TO_PROBE for n in range(21)]
        return [(phantom.picture(n / 15, (616, 820)).array.astype(np.float32), place) for n, place in enumerate(places)]
    sequence = read_metaimage(SPINE.read_bytes())
    frames = []
    for n, image in enumerate(sequence.array):
        probe, reference = sequence.transform(n, "ProbeToTracker"), sequence.transform(n, "ReferenceToTracker")
        assert probe is not None and reference is not None
        frames.append((image.astype(np.float32), np.linalg.inv(reference) @ probe @ IMAGE_TO_PROBE))
    return frames


class Numpy:
    """The same in numpy: coordinates of all pixels at once, then a scatter-add."""

    def __init__(self, like: Compound, method: Method, scatter: Literal["add.at", "bincount"]) -> None:
        self._shape, self._low = like.shape, like.affine[:3, 3] / SPACING_MM
        self._linear, self._scatter = method == "linear", scatter
        self._total = np.zeros(int(np.prod(self._shape)))
        self._weight = np.zeros_like(self._total)

    def add(self, image: NDArray[np.float32], affine: NDArray[np.float64]) -> None:
        y, x = np.indices(image.shape)
        to_voxel = affine[:3] / SPACING_MM
        at = to_voxel[:, :2] @ np.stack([x.ravel(), y.ravel()]) + (to_voxel[:, 3] - self._low)[:, None]
        grey = np.clip(np.floor(image.ravel() + 0.5), 0, 255)
        if not self._linear:
            return self._put(np.floor(at + 0.5).astype(np.int64), grey, np.ones_like(grey))
        base = np.floor(at).astype(np.int64)
        share = np.floor((at - base) * 8 + 0.5) / 8
        for corner in np.ndindex(2, 2, 2):
            step = np.array(corner)[:, None]
            self._put(base + step, grey, np.prod(np.where(step, share, 1 - share), axis=0))

    def _put(self, at: NDArray[np.int64], grey: NDArray[Any], weight: NDArray[Any]) -> None:
        index = np.ravel_multi_index(tuple(at[::-1]), self._shape)
        for out, values in ((self._total, grey * weight), (self._weight, weight)):
            if self._scatter == "add.at":
                np.add.at(out, index, values)
            else:
                out += np.bincount(index, values, out.size)

    def average(self) -> NDArray[Any]:
        mean = np.floor(self._total / np.maximum(self._weight, 1e-9) + 0.5)
        return np.where(self._weight > 0, mean, 0).reshape(self._shape)


def timed(add: Callable[..., Any], frames: Sweep) -> list[float]:
    """Milliseconds for each frame."""
    taken = []
    for image, affine in frames:
        began = time.perf_counter()
        add(image, affine)
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def measure(method: Method, frames: Sweep, n_rounds: int) -> dict[str, Any]:
    ours = Compound(SPACING_MM, MANY, method)
    for frame in frames:
        ours.add(*frame)
    volume, _ = ours.average()
    ms: dict[str, list[float]] = {"ours": [], "numpy add.at": [], "numpy bincount": []}
    largest = 0.0
    for _ in range(n_rounds):
        ms["ours"] += timed(Compound(SPACING_MM, MANY, method).add, frames)
        for scatter in ("add.at", "bincount"):
            peer = Numpy(ours, method, scatter)
            ms[f"numpy {scatter}"] += timed(peer.add, frames)
            largest = max(largest, float(np.abs(volume - peer.average()).max()))
    median = {name: statistics.median(values) for name, values in ms.items()}
    average_ms = statistics.median(timed(lambda *_: ours.average(), frames))
    holes_ms = statistics.median(timed(lambda *_: ours.fill_holes(ours.average()[0], 4), frames[:3]))
    return {
        "method": method,
        "ms_per_frame": {name: round(value, 2) for name, value in median.items()},
        "frames_per_s": {name: round(1000 / value, 1) for name, value in median.items()},
        "times_as_fast": {name: round(value / median["ours"], 1) for name, value in median.items() if name != "ours"},
        "largest_difference": largest,
        "average_ms": round(average_ms, 2),
        "fill_holes_ms": round(holes_ms, 1),
        "voxels": int(np.prod(ours.shape)),
    }


def agreement(method: Method, frames: Sweep) -> dict[str, float]:
    """How near to PLUS's reconstruction of the shared sweep (linear, mean, holes filled), where both have values."""
    theirs = read_metaimage(SPINE.with_name("SpinePhantomFreehandReconstructed.mha").read_bytes())
    ours = Compound(SPACING_MM, MANY, method, anchor_mm=theirs.offset_mm)  # type: ignore[arg-type]
    for frame in frames:
        ours.add(*frame)
    x, y, z = np.round((np.array(theirs.offset_mm) - ours.affine[:3, 3]) / SPACING_MM).astype(int)
    depth, height, width = theirs.array.shape
    part = ours.average()[0][z : z + depth, y : y + height, x : x + width].astype(float)
    both = (part > 0) & (theirs.array > 0)
    a, b = part[both], theirs.array[both].astype(float)
    return {
        "voxels": int(both.sum()),
        "correlation": round(float(np.corrcoef(a, b)[0, 1]), 4),
        "mean_difference": round(float(np.abs(a - b).mean()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    frames = sweep()
    image = frames[0][0]
    copied = np.empty((image.nbytes + 8 * image.size) // 4, np.float32)
    copy_ms = min(timed(lambda *_: np.copyto(copied, 1.0), frames[:1] * 20))
    results = [measure(method, frames, arguments.rounds) for method in ("nearest", "linear")]
    report = {
        "machine": machine(),
        "frames": len(frames),
        "pixels": list(image.shape),
        "sweep": "shared freehand sweep" if SPINE.exists() else "simulated",
        "floor_ms": round(copy_ms, 3),
        "results": results,
    }
    print(f"{len(frames)} frames of {image.shape[1]} x {image.shape[0]}, {report['sweep']}, one thread each")
    print(f"{'method':9}{'implementation':18}{'ms a frame':>12}{'frames/s':>11}{'ours is':>11}")
    for result in results:
        for name, value in result["ms_per_frame"].items():
            ratio = result["times_as_fast"].get(name)
            faster = f"{ratio:.1f} x" if ratio else ""
            print(f"{result['method']:9}{name:18}{value:12.2f}{result['frames_per_s'][name]:11.1f}{faster:>11}")
        print(
            f"{'':9}largest difference to numpy {result['largest_difference']:g} of 255; mean of {result['voxels']:,} "
            f"voxels {result['average_ms']} ms, holes {result['fill_holes_ms']} ms"
        )
    print(f"floor (the frame and its voxels written once): {report['floor_ms']} ms")
    if SPINE.exists():
        report["agreement"] = {method: agreement(method, frames) for method in ("nearest", "linear")}
        for method, found in report["agreement"].items():
            print(
                f"PLUS's reconstruction and ours, {method}: correlation {found['correlation']}, mean difference "
                f"{found['mean_difference']} of 255, over {found['voxels']:,} voxels"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
