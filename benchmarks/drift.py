# SPDX-License-Identifier: Apache-2.0
"""What watching for drift costs a frame, and what it tells of real images.

    python benchmarks/drift.py [--json FILE] [--repeats N]

Cost: `Drift.observe` in the graph's thread beside numpy.histogram of every pixel of the same four quantities, one
thread each, same data. What it tells: a reference from simulated training images (training/dead_leaves.py) through the
shipped mr-denoise, then windows of other simulated images, of real ones (shared/data, where it is there), and of images
that the model is not made for. A window is farther than 1 limit where it would be told to be unlike the card.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is imported

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from appliance.buffer.drift_counts import DriftCounts
from appliance.context import Context
from appliance.frames import Frame, Scan
from appliance.inference.drift import QUANTITIES, Reference, edges_of, reference
from appliance.inference.drift_watch import Drift
from operators.stages.denoise import Settings, make
from training.dead_leaves import dead_leaves
from training.dicom_slices import dicom_slices

Image = NDArray[np.float32]
Triple = tuple[Image, Image, float]  # image, result, noise level; all over the scale

SERIES = ROOT.parent / "shared" / "data" / "series"
N_TRAINING, N_WINDOW, PX = 150, 50, 192


def costs(n_repeats: int) -> list[dict[str, Any]]:
    """Time one frame, of each size and with one noise level or a map of it."""
    rows = []
    for side in (256, 512):
        for mapped in (False, True):
            rng = np.random.default_rng(0)
            image, result = rng.normal(0.5, 0.2, (2, side, side)).astype(np.float32)
            level = np.full((side, side), 0.05, np.float32) if mapped else 0.05
            with tempfile.TemporaryDirectory() as folder:
                drift = Drift("benchmark", None, DriftCounts(Path(folder), "x", "benchmark", "b"))
                ours = milliseconds(lambda: drift.observe(image, result, level, 1.0), n_repeats)  # noqa: B023
            peer = milliseconds(lambda: every_pixel(image, result, level), n_repeats // 20)  # noqa: B023
            rows.append(
                {"side": side, "level": "map" if mapped else "one", **{f"{k}_ms": v for k, v in ours.items()}}
                | {"numpy_p50_ms": peer["p50"], "times": peer["p50"] / ours["p50"]}
            )
    return rows


def every_pixel(image: Image, result: Image, level: Image | float) -> None:
    """What it would be without leaving pixels out, in numpy's own words."""
    noise = np.broadcast_to(np.float32(level), image.shape)
    for values, edges in zip((image, result, noise, (image - result) / noise), edges_of(None).values(), strict=True):
        np.histogram(values, edges)


def milliseconds(call: Callable[[], None], n: int) -> dict[str, float]:
    """Return the median and the 99th percentile of `n` calls after ten others."""
    taken = []
    for _ in range(n + 10):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    return {"p50": float(np.median(taken[10:])), "p99": float(np.percentile(taken[10:], 99))}


class Stage:
    """The denoise stage of the live path, one scan for each image."""

    def __init__(self, folder: Path) -> None:
        self._context = Context("benchmark", folder, folder)

    def __call__(self, image: Image) -> Triple:
        stage = make(Settings(), self._context)
        stage.begin(Scan("s", "MR", ("y", "x"), image.shape, "float32", 0))
        frame = Frame(
            scan_id="s", sequence=0, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=0, received_ns=0
        )
        result = stage.frame(frame).array
        scale = float(np.percentile(image, 99.5))
        return image / scale, result / scale, stage.status()["noise_level"] / scale


def noisy(truth: Image, rng: np.random.Generator, levels: tuple[float, float] = (0.01, 0.12)) -> Image:
    """Add Rician noise of a level between `levels`, in units of the brightest tissue."""
    sigma = float(np.percentile(truth, 99.5)) * rng.uniform(*levels)
    real, imaginary = rng.normal(0, sigma, (2, *truth.shape))
    return np.hypot(truth + real, imaginary).astype(np.float32)


def windows() -> Iterator[tuple[str, Iterator[Image]]]:
    """Give (what, images) of each window."""
    rng = np.random.default_rng(2)
    other = [dead_leaves(np.random.default_rng([3, i]), PX) for i in range(N_WINDOW)]
    yield "simulated, as at training, other images", (noisy(one, rng) for one in other)
    yield "the same with noise of 20 to 40 %", (noisy(one, rng, (0.2, 0.4)) for one in other)
    yield "the same upside down in grey (bright air)", (noisy(one.max() - one, rng) for one in other)
    yield "noise alone", (noisy(0 * one + np.float32(1e-3), rng) for one in other)
    for name, what in (("mr_t1_siemens_HFS", "real MR, T1 head"), ("ct_head_ge", "real CT, head (not for this model)")):
        path = SERIES / f"{name}.tar.xz"
        if path.exists():
            yield what, iter(dicom_slices(path)[4:-4])


def verdicts() -> list[dict[str, Any]]:
    """Compare each window with the reference."""
    with tempfile.TemporaryDirectory() as folder:
        stage, rng = Stage(Path(folder)), np.random.default_rng(1)
        training = [stage(noisy(dead_leaves(np.random.default_rng([4, i]), PX), rng)) for i in range(N_TRAINING)]
        known = Reference.model_validate(reference(*zip(*training, strict=True)))
        rows = []
        for what, images in windows():
            drift = Drift("benchmark", known, DriftCounts(Path(folder), "x", "benchmark", what))
            triples = [stage(image) for image in images]
            for image, result, level in (triples * N_WINDOW)[: max(N_WINDOW, len(triples))]:
                drift.observe(image, result, level, 1.0)
            status = drift.status()
            far = {name: status["distance"][name] / status["limit"][name] for name in status["distance"]}
            rows.append({"window": what, "images": len(triples), "limits": far, "told": status["unlike_card"]})
        return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=2000)
    arguments = parser.parse_args()
    cost, told = costs(arguments.repeats), verdicts()
    print("| frame | noise level | observe p50, ms | p99 | numpy.histogram of every pixel p50 | ours is faster by |")
    print("|---|---|---|---|---|---|")
    for row in cost:
        print(
            f"| {row['side']}² | {row['level']} | {row['p50_ms']:.3f} | {row['p99_ms']:.3f} | "
            f"{row['numpy_p50_ms']:.2f} | {row['times']:.0f} |"
        )
    print(f"\n| window (distance in limits) | images | {' | '.join(QUANTITIES)} | told |")
    print("|---|---|" + "---|" * (len(QUANTITIES) + 1))
    for row in told:
        far = " | ".join(f"{row['limits'].get(name, float('nan')):.2f}" for name in QUANTITIES)
        print(f"| {row['window']} | {row['images']} | {far} | {', '.join(row['told']) or 'no'} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"cost": cost, "windows": told}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
