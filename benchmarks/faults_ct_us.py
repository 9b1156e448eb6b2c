# SPDX-License-Identifier: Apache-2.0
"""How well faults of CT and ultrasound are found, beside a one-class score on the image, in the same run.

    python -m benchmarks.faults_ct_us [--json FILE] [--only ct|us] [--cases N] [--clean-frames N] [--trials N]

1. AUROC of each fault on bodies, doses, kernels, tissues and probes that nothing was tuned on, and on real slices and
   frames of ../shared with planted faults: the probability that a faulty image measures more than a clean one. Found,
   false: with default thresholds, on one image, without the vote. Off: median distance to where the fault was planted,
   in pixels, degrees for views. The peer sees the image only; it was fitted to clean simulated images.
2. Alarms in clean frames after commissioning: `nearscan commission`'s own arithmetic on frames of some patients, then
   other patients. A CT patient is one body of ellipses, moved, turned and scaled from slice to slice, with noise of its
   projections: dead leaves have stripes that no body has.
3. Frames from the beginning of a lasting fault to its alarm, with the same thresholds.
4. Real clean images, with default thresholds and in their own order.
5. Time per image on one core (CPU time of this process, so that other work does not count).
Simulation: training/ct_faults.py and training/us_faults.py, with the range of each fault's strength.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is imported

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter

from appliance.ct.faults import CtFaults
from appliance.faults.detector import Detector, default_thresholds
from appliance.faults.events import EventLog
from appliance.faults.measurements import Measurements
from appliance.faults.thresholds import learn_setup
from appliance.frames import Finding, Frame
from appliance.imaging.metaimage import read_metaimage
from appliance.ultrasound.faults import UltrasoundFaults
from benchmarks.grappa import machine
from training import ct_faults, us_faults
from training.dicom_slices import dicom_slices
from training.low_dose_ct import hu_phantom
from training.parallel_beam import beam_for
from training.simulate_faults import ellipses
from training.validate_denoise import HELD_OUT
from training.validate_faults import PEER, OneClass, auroc

Image = NDArray[np.float32]

SHARED = Path("../shared/data")
CT_SERIES = ("ct_head_ge", "ct_phantom_philips_S2010", "ct_phantom_philips_S3010")
US_FRAMES = ("SpinePhantomFreehand", "fCal_Test_Validation_3NWires_fCal2.0")
N_BEFORE = 6  # clean frames before a fault


def frame(image: Image, number: int) -> Frame:
    at = {"acquired_ns": round(number * us_faults.FRAME_S * 1e9), "received_ns": 0}
    return Frame(scan_id="b", sequence=number, array=image, axes=("y", "x"), affine=np.eye(4), **at)


def detector(kind: type[Any], thresholds: Mapping[str, float] | None = None) -> Detector:
    return kind(thresholds or default_thresholds(kind.RULES))


def judge_last(images: list[Image], make: type[Any]) -> tuple[dict[str, float], list[Finding]]:
    """What is measured of, and found in, the last of some images."""
    judging = detector(make)
    for number, image in enumerate(images):
        found = judging.judge(frame(image, number))
    return judging.measured, found


def ellipse_body(rng: np.random.Generator, size: int) -> Image:
    """Return smooth organs, bones and lungs within a rim of fat, HU."""
    body = np.interp(ellipses(rng, size), (0, 0.02, 0.1, 0.15, 0.3, 0.9, 1.2), (-1000, -900, -110, 0, 30, 90, 900))
    return np.asarray(gaussian_filter(body, rng.uniform(0.4, 1.0)), np.float32)


def scan_of(rng: np.random.Generator, truth: Image) -> ct_faults.Scanned:
    """Noise of 4 to 25 HU in the body, a kernel between smooth and sharp, pixels of 0.5 to 1.2 mm."""
    beam = beam_for(len(truth), 720, rng.uniform(0.8, 1.4), rng.uniform(0.8, 1.0), rng.uniform(0.2, 1.0))
    return ct_faults.scan(rng, truth, beam, rng.uniform(0.5, 1.2), float(np.exp(rng.uniform(*np.log([4, 25])))))


def simulated_slice(number: int) -> ct_faults.Scanned:
    rng = np.random.default_rng([7, number])
    return scan_of(rng, (ellipse_body if number % 2 else hu_phantom)(rng, 256))


def real_slices(n: int) -> Iterator[ct_faults.Scanned]:
    """Their own noise, and a beam with all frequencies: a planted loss is a loss of what they have."""
    stacks = [dicom_slices(SHARED / "series" / f"{name}.tar.xz") for name in CT_SERIES]
    slices = [image for some in zip(*(stack[2:-2:3] for stack in stacks), strict=False) for image in some][:n]
    for i, image in enumerate(slices):
        yield ct_faults.scan(np.random.default_rng([8, i]), image, beam_for(len(image), 984, 1, 1, 0), 0.49, 0)


def ct_rows(what: str, scans: Iterable[ct_faults.Scanned], peer: OneClass | None) -> list[dict[str, Any]]:
    clean: list[Any] = []
    faulty: dict[str, list[Any]] = {kind: [] for kind in ct_faults.KINDS}
    for number, scanned in enumerate(scans):
        clean.append((*judge_last([scanned.image], CtFaults), 0, score(peer, scanned.image)))
        for kind in ct_faults.KINDS:
            planted = ct_faults.plant(np.random.default_rng([9, number]), kind, scanned)
            measured = judge_last([planted.image], CtFaults)
            faulty[kind].append((*measured, planted.where, score(peer, planted.image)))
    return [row(what, kind, clean, cases, _ct_distance, peer=peer is not None) for kind, cases in faulty.items()]


def score(peer: OneClass | None, image: Image) -> float:
    return peer.score(image[None] / np.float32(256)) if peer else float("nan")


def _ct_distance(finding: Finding, where: float) -> float:
    if "radius_px" in finding.where:
        return abs(finding.where["radius_px"] - abs(where))
    return abs((finding.where["angle_degrees"] - where + 90) % 180 - 90)


def us_rows(what: str, clips: Iterable[list[Image]], peer: OneClass | None) -> list[dict[str, Any]]:
    clean: list[Any] = []
    faulty: dict[str, list[Any]] = {kind: [] for kind in us_faults.KINDS}
    for number, images in enumerate(clips):
        clean.append((*judge_last(images, UltrasoundFaults), 0, score(peer, images[-1])))
        for kind in us_faults.KINDS:
            planted = us_faults.Planted(images[-1], 0)
            if kind != "frozen_image":
                planted = us_faults.plant(np.random.default_rng([10, number]), kind, images[-1])
            shown = [*images, *[images[-1]] * 14] if kind == "frozen_image" else [*images[:-1], planted.image]
            measured = judge_last(shown, UltrasoundFaults)
            faulty[kind].append((*measured, planted.column, score(peer, planted.image)))
    return [row(what, kind, clean, cases, _us_distance, peer=peer is not None) for kind, cases in faulty.items()]


def _us_distance(finding: Finding, where: float) -> float:
    return abs(finding.where["column"] - where) if "column" in finding.where else 0.0


def simulated_clip(number: int, n_frames: int = N_BEFORE + 1) -> list[Image]:
    return us_faults.clip(np.random.default_rng([11, number]), 256, n_frames)


def us_frames(name: str) -> list[Image]:
    file = SHARED / "us_tracked/TestImages" / f"{name}.igs.mha"
    return list(read_metaimage(file.read_bytes()).array.astype(np.float32))


def real_clips() -> list[list[Image]]:
    clips = []
    for name in US_FRAMES[:1]:  # in the water tank there is nothing to lose contact with
        frames = us_frames(name)
        clips += [frames[i - N_BEFORE : i + 1] for i in range(N_BEFORE, len(frames))]
    return clips


def row(what: str, kind: str, clean: list[Any], faulty: list[Any], distance: Any, *, peer: bool) -> dict[str, Any]:
    """AUROC of one rule and of the peer, and what its default threshold finds."""
    good, bad = ([c[0][kind] for c in cases if kind in c[0]] for cases in (clean, faulty))
    hits = [(f, where) for _, found, where, _ in faulty for f in found if f.kind == kind]
    off = [distance(f, where) for f, where in hits]
    return {
        "data": what,
        "fault": kind,
        "clean": len(good),
        "faulty": len(bad),
        "auroc": round(auroc(good, bad), 4),
        "auroc_peer": round(auroc([c[3] for c in clean], [c[3] for c in faulty]), 4) if peer else None,
        "found": round(len(hits) / len(faulty), 3),
        "false": round(sum(f.kind == kind for _, found, *_ in clean for f in found) / len(clean), 3),
        "off": round(float(np.median(off)), 2) if off else None,
        "largest_clean": round(max(good), 2),
        "smallest_faulty": round(min(bad), 2),
    }


class CtPatient:
    """One body; its slices are that body moved, and its noise is mixed from that of N_SCANS scans.

    A sum of independent noise images with weights of norm 1 has their covariance, and no two slices have the same.
    """

    N_SCANS = 4

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng([31, number])
        self.truth, self._rng = ellipse_body(rng, 256), rng
        self.scanned = scan_of(rng, self.truth)
        self._noise = ct_faults.noise_images(rng, self.scanned, self.N_SCANS)

    def slice(self, added: Image | float = 0.0, moves: bool = True) -> Image:
        """Return the next slice, with what a fault adds."""
        weights = self._rng.normal(size=self.N_SCANS)
        noise = np.tensordot(weights / np.linalg.norm(weights), self._noise, 1)
        truth = self._moved() if moves else self.truth
        return ct_faults.stored((truth + noise + added).astype(np.float32))

    def _moved(self) -> Image:
        angle, zoom = self._rng.uniform(-0.3, 0.3), self._rng.uniform(0.9, 1.1)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.full(2, (len(self.truth) - 1) / 2)
        offset = middle - turn @ middle + self._rng.uniform(-8, 8, 2)
        return np.asarray(affine_transform(self.truth, turn, offset, order=1, cval=-1000.0), np.float32)


def ct_patient(number: int, n_frames: int) -> Iterator[Image]:
    patient = CtPatient(number)
    return (patient.slice() for _ in range(n_frames))


def us_patient(number: int, n_frames: int) -> Iterator[Image]:
    return iter(simulated_clip(number, n_frames))


Patient = Callable[[int, int], Iterator[Image]]  # number, frames
FRAMES_OF = {CtFaults: 250, UltrasoundFaults: 500}  # of one patient, for the false alarms


def commissioned(kind: type[Any], patient: Patient, n_patients: int = 10, n_frames: int = 100) -> dict[str, float]:
    """Thresholds that `nearscan commission` would set from these patients."""
    rules, rows = tuple(kind.RULES), []
    for number in range(n_patients):
        judging = detector(kind)
        for sequence, image in enumerate(patient(1000 + number, n_frames)):
            judging.judge(frame(image, sequence))
            rows.append([judging.measured.get(rule, np.nan) for rule in rules])
    setup = learn_setup(Measurements("benchmark", rules, np.array(rows, np.float32)), kind.RULES, 1e-4)
    return default_thresholds(kind.RULES) | {name: learnt.threshold for name, learnt in setup.rules.items()}


def false_alarms(kind: type[Any], patient: Patient, limits: Mapping[str, float], n_frames: int) -> dict[str, Any]:
    """Alarms by vote, and single findings, in clean frames of patients that commissioning did not see."""
    per_patient, findings, alarms = FRAMES_OF[kind], Counter[str](), 0
    n_patients = max(1, n_frames // per_patient)
    for number in range(2000, 2000 + n_patients):
        judging, log = detector(kind, limits), EventLog()
        for sequence, image in enumerate(patient(number, per_patient)):
            log.record(sequence, 0, judging.judge(frame(image, sequence)))
        findings.update(log.status()["findings"])
        alarms += sum(event["alarm"] for event in log.status()["events"])
    counted = {"clean_frames": n_patients * per_patient, "patients": n_patients, "alarms": alarms}
    return {**counted, "findings": dict(findings)}


def ct_lasting(number: int) -> dict[str, list[Image]]:
    """Clean slices of one body, then ten with a fault; for each fault."""
    patient = CtPatient(3000 + number)
    added = {
        fault: ct_faults.plant(np.random.default_rng([12, number]), fault, patient.scanned).added
        for fault in ct_faults.KINDS
    }
    clean = [patient.slice(moves=False) for _ in range(N_BEFORE)]
    return {fault: [*clean, *(patient.slice(more, moves=False) for _ in range(10))] for fault, more in added.items()}


def us_lasting(number: int) -> dict[str, list[Image]]:
    """Clean frames of one clip, then ten with a fault; for each fault."""
    images = simulated_clip(3000 + number, N_BEFORE + 10)
    clean, rest = images[:N_BEFORE], images[N_BEFORE:]
    faulty = {
        fault: [us_faults.plant(np.random.default_rng([12, number]), fault, image).image for image in rest]
        for fault in us_faults.KINDS
        if fault != "frozen_image"
    }
    return {fault: [*clean, *images] for fault, images in faulty.items()} | {"frozen_image": [*clean, *clean[-1:] * 10]}


def alarm_after(kind: type[Any], images: list[Image], limits: Mapping[str, float]) -> int | None:
    """Frames from the first faulty one to the alarm, counting it; None where ten frames bring none."""
    judging, log = detector(kind, limits), EventLog()
    for sequence, image in enumerate(images):
        told = log.record(sequence, 0, judging.judge(frame(image, sequence)))
        if any(finding.severity == "alarm" for finding in told) and sequence >= N_BEFORE:
            return sequence - N_BEFORE + 1
    return None


def speed(kind: type[Any], images: list[Image]) -> float:
    """Milliseconds of CPU per image."""
    judging, times = detector(kind), []
    for sequence in range(20):
        given = frame(images[sequence % len(images)], sequence)
        started = time.process_time()
        judging.judge(given)
        times.append(1e3 * (time.process_time() - started))
    return round(statistics.median(times[4:]), 2)


def all_clean(what: str, make: type[Any], images: list[Image]) -> dict[str, Any]:
    """How many of real clean images, one after the other, have a finding."""
    judging = detector(make)
    found = [judging.judge(frame(image, number)) for number, image in enumerate(images)]
    return {"data": what, "frames": len(images), "frames_with_a_finding": sum(map(bool, found))}


def planted_ct(n_cases: int) -> dict[str, Any]:
    """AUROC and real images of CT."""
    peer = OneClass([simulated_slice(number).image[None] / np.float32(256) for number in range(24)])
    rows = ct_rows("simulated CT", (simulated_slice(HELD_OUT + i) for i in range(n_cases)), peer)
    clean: list[dict[str, Any]] = []
    if SHARED.exists():
        rows += ct_rows("real CT", real_slices(max(1, n_cases // 4)), None)
        for name in CT_SERIES:
            clean.append(all_clean(name, CtFaults, list(dicom_slices(SHARED / "series" / f"{name}.tar.xz"))))
    noise = np.random.default_rng(0).normal(0, 20, (4, 512, 512)).astype(np.float32)
    return {"planted": rows, "clean": clean, "ms_per_512_slice": speed(CtFaults, list(noise))}


def planted_us(n_cases: int) -> dict[str, Any]:
    """AUROC and real images of ultrasound."""
    peer = OneClass([simulated_clip(number)[-1][None] / np.float32(256) for number in range(80)])
    rows = us_rows("simulated US", (simulated_clip(HELD_OUT + i) for i in range(n_cases)), peer)
    clean: list[dict[str, Any]] = []
    if SHARED.exists():
        rows += us_rows("real US", real_clips(), None)
        for name in US_FRAMES:
            images = us_frames(name)
            clean.append(all_clean(name, UltrasoundFaults, images))
    shown = us_faults.clip(np.random.default_rng(0), 512, 8)
    return {"planted": rows, "clean": clean, "ms_per_512_frame": speed(UltrasoundFaults, shown)}


def after_commissioning(
    kind: type[Any], patient: Patient, lasting: Callable[[int], dict[str, list[Image]]], n_clean: int, n_trials: int
) -> dict[str, Any]:
    """Frames to the alarm, and false alarms."""
    limits = commissioned(kind, patient)
    taken: dict[str, list[int | None]] = {}
    for trial in range(n_trials):
        for fault, images in lasting(trial).items():
            taken.setdefault(fault, []).append(alarm_after(kind, images, limits))
    return {
        "thresholds": {name: round(limit, 3) for name, limit in limits.items()},
        "frames_to_alarm": taken,
        "false_alarms": false_alarms(kind, patient, limits, n_clean),
    }


def print_planted(result: dict[str, Any]) -> None:
    """A table for people."""
    print(f"{'data':13}{'fault':17}{'clean':>6}{'faulty':>7}{'AUROC':>8}{'peer':>8}{'found':>7}{'false':>7}{'off':>7}")
    for r in result["planted"]:
        off = "" if r["off"] is None else r["off"]
        peer = "-" if r["auroc_peer"] is None else f"{r['auroc_peer']:.4f}"
        print(
            f"{r['data']:13}{r['fault']:17}{r['clean']:6}{r['faulty']:7}{r['auroc']:8.4f}{peer:>8}{r['found']:7.3f}"
            f"{r['false']:7.3f}{off:>7}"
        )
    for r in result["clean"]:
        print(f"{r['data']}: {r['frames_with_a_finding']} of {r['frames']} clean images with a finding")
    print({key: value for key, value in result.items() if key.startswith("ms_")}, flush=True)


def print_commissioned(result: dict[str, Any]) -> None:
    """Lines for people."""
    print(f"thresholds of commissioning: {result['thresholds']}")
    for fault, taken in result["frames_to_alarm"].items():
        within = sum(n is not None and n <= 3 for n in taken)
        print(f"{fault:17} alarm within 3 frames in {within} of {len(taken)}: {taken}")
    clean = result["false_alarms"]
    print(
        f"{clean['alarms']} alarms in {clean['clean_frames']} clean frames of {clean['patients']} patients; "
        f"single findings: {clean['findings'] or 'none'}",
        flush=True,
    )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=("ct", "us"), help="leave the other out")
    parser.add_argument("--cases", type=int, default=40, help="held-out bodies and clips for the AUROC; 0: none")
    parser.add_argument("--clean-frames", type=int, default=10_000, help="for the false alarms; 0: nothing of 2 and 3")
    parser.add_argument("--trials", type=int, default=10, help="lasting faults of each kind")
    given = parser.parse_args()
    described = machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()), f"\npeer: {PEER}", flush=True)
    parts = {"us": (planted_us, UltrasoundFaults, us_patient, us_lasting)}
    parts["ct"] = (planted_ct, CtFaults, ct_patient, ct_lasting)
    results: dict[str, Any] = {}
    for name, (planted, kind, patient, lasting) in parts.items():
        if given.only not in (None, name):
            continue
        if given.cases:
            results[name] = planted(given.cases)
            print_planted(results[name])
        if given.clean_frames:
            after = after_commissioning(kind, patient, lasting, given.clean_frames, given.trials)
            results[f"{name} commissioned"] = after
            print_commissioned(after)
    if given.json:
        given.json.write_text(json.dumps({"machine": described, **results}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
