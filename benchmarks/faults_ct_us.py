# SPDX-License-Identifier: Apache-2.0
"""Faults of CT and ultrasound: how well the rules tell planted ones from clean images.

    python -m benchmarks.faults_ct_us [--json FILE] [--cases N]

Bodies, tissues, noise, kernels and probes are drawn at random; real slices and frames of ../shared where they are.
AUROC: the probability that a faulty image scores above a clean one. Found, false: at the default thresholds, on one
image, without the vote of three in five. Off: median distance to where the fault was planted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.ct.faults import CtFaults
from appliance.faults.detector import Detector, default_thresholds
from appliance.frames import Finding, Frame
from appliance.ultrasound.faults import UltrasoundFaults
from training import ct_faults, us_faults
from training.dicom_slices import dicom_slices
from training.low_dose_ct import hu_phantom
from training.mha import mha_frames
from training.parallel_beam import beam_for
from training.validate_denoise import HELD_OUT

Image = NDArray[np.float32]
Scored = tuple[float, list[Finding]]  # the rule's measure (NaN: unchecked), what was found

SHARED = Path("../shared/data")
CT_SERIES = ("ct_head_ge", "ct_phantom_philips_S2010", "ct_phantom_philips_S3010")
US_FRAMES = ("SpinePhantomFreehand", "fCal_Test_Validation_3NWires_fCal2.0")
N_BEFORE = 6  # clean frames before a fault


def frame(image: Image, number: int) -> Frame:
    at_ns = round(number * us_faults.FRAME_S * 1e9)
    return Frame(
        scan_id="b", sequence=number, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=at_ns, received_ns=0
    )


def detector(kind: type[Any]) -> Detector:
    return kind(default_thresholds(kind.RULES))


def judge_last(images: list[Image], make: type[Any]) -> tuple[dict[str, float], list[Finding]]:
    """What is measured of, and found in, the last of some images."""
    judging = detector(make)
    for number, image in enumerate(images):
        found = judging.judge(frame(image, number))
    return judging.measured, found


def simulated_slices(n: int) -> Iterator[ct_faults.Scanned]:
    for i in range(n):
        rng = np.random.default_rng([7, HELD_OUT + i])
        truth, size = hu_phantom(rng, 256), 256
        beam = beam_for(size, 720, rng.uniform(0.8, 1.4), rng.uniform(0.8, 1.0), rng.uniform(0.2, 1.0))
        yield ct_faults.scan(rng, truth, beam, rng.uniform(0.5, 1.2), np.exp(rng.uniform(*np.log([5e4, 5e5]))))


def real_slices(n: int) -> Iterator[ct_faults.Scanned]:
    """Their own noise, and a beam with all frequencies: a planted loss is a loss of what they have."""
    stacks = [dicom_slices(SHARED / "series" / f"{name}.tar.xz") for name in CT_SERIES]
    slices = [image for stack in stacks for image in stack[2:-2:3]][:n]
    for i, image in enumerate(slices):
        yield ct_faults.scan(np.random.default_rng([8, i]), image, beam_for(len(image), 984, 1, 1, 0), 0.49, 0)


def ct_rows(what: str, scans: Iterator[ct_faults.Scanned]) -> list[dict[str, Any]]:
    clean: list[Any] = []
    faulty: dict[str, list[Any]] = {kind: [] for kind in ct_faults.KINDS}
    for number, scanned in enumerate(scans):
        clean.append(judge_last([scanned.image], CtFaults))
        for kind in ct_faults.KINDS:
            planted = ct_faults.plant(np.random.default_rng([9, number]), kind, scanned)
            faulty[kind].append((*judge_last([planted.image], CtFaults), planted.where))
    return [row(what, kind, clean, cases, _ct_distance) for kind, cases in faulty.items()]


def _ct_distance(finding: Finding, where: float) -> float:
    if "radius_px" in finding.where:
        return abs(finding.where["radius_px"] - abs(where))
    return abs((finding.where["angle_degrees"] - where + 90) % 180 - 90)


def us_rows(what: str, clips: list[list[Image]]) -> list[dict[str, Any]]:
    clean = [judge_last(images, UltrasoundFaults) for images in clips]
    faulty: dict[str, list[Any]] = {kind: [] for kind in us_faults.KINDS}
    for number, images in enumerate(clips):
        for kind in us_faults.KINDS:
            rng = np.random.default_rng([10, number])
            if kind == "frozen_image":
                faulty[kind].append((*judge_last([*images, *[images[-1]] * 14], UltrasoundFaults), 0))
                continue
            planted = us_faults.plant(rng, kind, images[-1])
            faulty[kind].append((*judge_last([*images[:-1], planted.image], UltrasoundFaults), planted.column))
    return [row(what, kind, clean, cases, _us_distance) for kind, cases in faulty.items()]


def _us_distance(finding: Finding, where: float) -> float:
    return abs(finding.where["column"] - where) if "column" in finding.where else 0.0


def simulated_clips(n: int) -> list[list[Image]]:
    return [us_faults.clip(np.random.default_rng([11, HELD_OUT + i]), 256, N_BEFORE + 1) for i in range(n)]


def real_clips() -> list[list[Image]]:
    clips = []
    for name in US_FRAMES[:1]:  # in the water tank there is nothing to lose contact with
        frames = list(mha_frames(SHARED / "us_tracked/TestImages" / f"{name}.igs.mha"))
        clips += [frames[i - N_BEFORE : i + 1] for i in range(N_BEFORE, len(frames))]
    return clips


def row(what: str, kind: str, clean: list[Any], faulty: list[Any], distance: Any) -> dict[str, Any]:
    """AUROC of one rule, and what its default threshold finds."""
    good = np.array([measured.get(kind, np.nan) for measured, _ in clean])
    bad = np.array([measured.get(kind, np.nan) for measured, *_ in faulty])
    good, bad = good[np.isfinite(good)], bad[np.isfinite(bad)]
    hits = [(f, where) for _, found, where in faulty for f in found if f.kind == kind]
    off = [distance(f, where) for f, where in hits]
    auroc = float((bad[None] > good[:, None]).mean() + (bad[None] == good[:, None]).mean() / 2)
    return {
        "data": what,
        "fault": kind,
        "clean": len(good),
        "faulty": len(bad),
        "auroc": round(auroc, 4),
        "found": round(len(hits) / len(faulty), 3),
        "false": round(sum(f.kind == kind for _, found in clean for f in found) / len(clean), 3),
        "off": round(float(np.median(off)), 2) if off else None,
        "largest_clean": round(float(good.max()), 2),
    }


def all_clean(what: str, make: type[Any], images: list[Image]) -> dict[str, Any]:
    """How many of real clean images, one after the other, have a finding."""
    judging = detector(make)
    found = [judging.judge(frame(image, number)) for number, image in enumerate(images)]
    return {"data": what, "frames": len(images), "frames_with_a_finding": sum(map(bool, found))}


def measure(n_cases: int) -> dict[str, Any]:
    """Everything, as plain values."""
    rows = ct_rows("simulated CT", simulated_slices(n_cases)) + us_rows("simulated US", simulated_clips(n_cases))
    clean = []
    if SHARED.exists():
        rows += ct_rows("real CT", real_slices(n_cases)) + us_rows("real US", real_clips())
        for name in CT_SERIES:
            clean.append(all_clean(name, CtFaults, list(dicom_slices(SHARED / "series" / f"{name}.tar.xz"))))
        for name in US_FRAMES:
            images = list(mha_frames(SHARED / "us_tracked/TestImages" / f"{name}.igs.mha"))
            clean.append(all_clean(name, UltrasoundFaults, images))
    return {"planted": rows, "clean": clean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    given = parser.parse_args()
    result = measure(given.cases)
    print(f"{'data':14}{'fault':18}{'clean':>6}{'faulty':>7}{'AUROC':>8}{'found':>7}{'false':>7}{'off':>7}")
    for r in result["planted"]:
        off = "" if r["off"] is None else r["off"]
        print(
            f"{r['data']:14}{r['fault']:18}{r['clean']:6}{r['faulty']:7}{r['auroc']:8.4f}{r['found']:7.3f}"
            f"{r['false']:7.3f}{off:>7}"
        )
    for r in result["clean"]:
        print(f"{r['data']}: {r['frames_with_a_finding']} of {r['frames']} clean images with a finding")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
