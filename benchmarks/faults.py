# SPDX-License-Identifier: Apache-2.0
"""How well faults of an MRI acquisition are found, beside a one-class score on the image, in the same run.

    python -m benchmarks.faults [--json FILE] [--scenes N] [--clean-frames N] [--trials N]

1. AUROC of each fault on held-out scenes (chest and Shepp-Logan head at other matrices, coils and accelerations than
   the rules were made with): what the rule measured after some clean frames, and in a scan's first frame, where it has
   a basis there; and the peer, which sees the image only.
2. Alarms in clean frames after commissioning: `nearscan commission`'s own arithmetic on frames of some patients, then
   other patients of the same setup, 500 frames each of a beating heart, breathing and a contrast agent.
3. Frames from the beginning of a lasting fault, drawn anew in each frame, to its alarm, with the same thresholds.
4. Leave one out: what of each fault is noticed when the rules made for it are off, as an unknown fault would be.
5. Real data where it is there: clean and with faults planted into the real k-space.
6. Time per 8-coil 256² frame on one core (CPU time of this process, so that other work does not count).
Simulation: training/simulate_faults.py, with the range of each fault's strength.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is imported

import argparse
import copy
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from appliance.faults.commissioned import Setup
from appliance.faults.detector import default_thresholds
from appliance.faults.events import EventLog
from appliance.faults.measurements import Measurements
from appliance.faults.thresholds import learn_setup
from appliance.frames import Frame, Position
from appliance.mri.faults import MrFaults
from appliance.mri.fourier import to_image
from appliance.mri.phantom import BREATH_FRAMES, cine_image
from appliance.mri.rules import RULES
from benchmarks.grappa import REAL_FILE, machine, real_slice
from training.dicom_slices import dicom_slices
from training.fault_scenes import features_of, held_out_scene, placed, trained_scene
from training.simulate_faults import Acquired, Coils, Image, Kspace, Scene, acquire
from training.validate_faults import PEER, OneClass, auroc

RULE_OF = {
    "spike": "spike",
    "zipper": "zipper",
    "coil_drop": "coil_drop",
    "noisy_coil": "noisy_coil",
    "clipping": "clipping",
    "line_drop": "line_drop",
    "wrap": "wrap",
    "ghosting": "odd_even",
    "motion": "motion",
    "displacement": "displacement",
    "signal_drop": "signal_drop",
    "slice_dropout": "slice_dropout",
    "low_snr": "low_snr",
}
FIRST = {"ghosting": "odd_even_first"}  # the rule in a scan's first frame, where it is another
FINDS = {fault: {fault, rule} | {FIRST.get(fault, rule)} for fault, rule in RULE_OF.items()}
BLOOD, UPTAKE, UPTAKE_FRAMES = 0.9, 0.5, 240  # of the cine phantom; part of its signal; wash in and out
BREATH_PX = 1.0  # of 112
N_BEFORE = 7  # clean frames before the fault
T1_FILE = Path("../shared/data/series/mr_t1_siemens_HFS.tar.xz")


def frame_of(acquired: Acquired, sequence: int, slice_index: int = 0) -> Frame:
    """What the stage gets."""
    return Frame(
        scan_id="benchmark",
        sequence=sequence,
        array=acquired.image,
        axes=("y", "x"),
        affine=np.eye(4),
        acquired_ns=0,
        received_ns=0,
        position=Position(slice=slice_index),
        attachments={"kspace": acquired.kspace, "ky": acquired.ky},
    )


def never() -> dict[str, float]:
    """Thresholds that nothing exceeds: to measure only."""
    return dict.fromkeys(default_thresholds(RULES), np.inf)


class Measured(NamedTuple):
    """Of one frame: by rule, after clean frames and as the first; and the peer's score."""

    after: dict[str, float]
    first: dict[str, float]
    peer: float


def measure_scene(scene: Scene, seed: int, peer: OneClass) -> dict[str, Measured]:
    """Return what is measured of a clean frame ("") and of each fault, each after the same clean frames."""
    rng = np.random.default_rng([seed, 11])
    settled = MrFaults(never())
    for sequence in range(2 * N_BEFORE):  # two slices: a slice's dropout shows against the other
        settled.judge(frame_of(acquire(scene, rng), sequence, sequence % 2))
    found = {}
    for fault in ("", *RULE_OF):
        detector, fresh, acquired = copy.deepcopy(settled), MrFaults(never()), acquire(scene, rng, fault)
        detector.judge(frame_of(acquired, 2 * N_BEFORE))
        fresh.judge(frame_of(acquired, 0))
        found[fault] = Measured(detector.measured, fresh.measured, peer.score(features_of(acquired)))
    return found


def auroc_table(n_scenes: int) -> list[dict[str, Any]]:
    """One row for each fault."""
    peer = OneClass([features_of(acquire(trained_scene(3, i), np.random.default_rng([3, i]))) for i in range(80)])
    measured: dict[str, list[Measured]] = {}
    for number in range(n_scenes):
        for fault, of in measure_scene(held_out_scene(5, number), number, peer).items():
            measured.setdefault(fault, []).append(of)
    rows = []
    for fault, rule in RULE_OF.items():
        clean, faulty = measured[""], measured[fault]
        row: dict[str, Any] = {"fault": fault, "rule": rule, "scenes": n_scenes}
        row["auroc_rule"] = auroc(*([of.after.get(rule, 0.0) for of in each] for each in (clean, faulty)))
        first = FIRST.get(fault, rule)
        if all(first in of.first for of in clean):
            row["auroc_first"] = auroc(*([of.first.get(first, 0.0) for of in each] for each in (clean, faulty)))
        row["auroc_peer"] = auroc(*([of.peer for of in each] for each in (clean, faulty)))
        rows.append(row)
    return rows


@lru_cache(maxsize=512)
def chest(i: int) -> Image:
    """The cine phantom at frame i, its blood as bright as the contrast agent makes it."""
    image = cine_image(i, (192, 192))
    return image * (1 + UPTAKE * np.sin(np.pi * i / UPTAKE_FRAMES) ** 2 * (image > BLOOD)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Patient:
    """A chest of its own size and place in a scanner of 8 coils at acceleration 2; nothing about it is a fault.

    It beats and breathes as the cine phantom does, which moves the heart; breathing also moves the whole chest by up
    to BREATH_PX along y; and a contrast agent brightens the blood by up to UPTAKE, and leaves again.
    """

    number: int
    coils: Coils  # all of a site's patients lie in the same

    @cached_property
    def _noise(self) -> float:
        return float(np.random.default_rng([21, self.number]).uniform(0.015, 0.035))

    def _scene(self, i: int) -> Scene:
        down = BREATH_PX * np.sin(2 * np.pi * i / BREATH_FRAMES)
        truth = placed(np.random.default_rng([22, self.number]), chest(i), (112, 112), down)
        return Scene(truth, self.coils, self._noise, 2)

    def frames(self, n: int, seed: int, fault: str = "", begin: int = 0) -> Iterator[Acquired]:
        """Give n frames; from `begin` on with a fault that is drawn anew in each."""
        rng, first = np.random.default_rng(seed), self._scene(0)
        for i in range(n):
            scene = self._scene(i)
            for name in ("maps", "_unmixing"):  # weights of the first frame, as in a real scan
                object.__setattr__(scene, name, getattr(first, name))
            yield acquire(scene, rng, fault if i >= begin else "")


def commissioned(coils: Coils, n_patients: int = 12, n_frames: int = 100) -> Setup:
    """Thresholds that `nearscan commission` would set from these patients."""
    rules = tuple(default_thresholds(RULES))
    rows = []
    for number in range(n_patients):
        detector = MrFaults(default_thresholds(RULES))
        for sequence, acquired in enumerate(Patient(1000 + number, coils).frames(n_frames, 1000 + number)):
            detector.judge(frame_of(acquired, sequence))
            rows.append([detector.measured.get(rule, np.nan) for rule in rules])
    return learn_setup(Measurements("benchmark", rules, np.array(rows, np.float32)), RULES, 1e-4)


def false_alarms(coils: Coils, limits: Mapping[str, float], n_frames: int) -> dict[str, Any]:
    """Alarms by vote, and single findings, in clean frames of patients that commissioning did not see."""
    per_patient, findings, alarms = 500, Counter[str](), 0
    for number in range(max(1, n_frames // per_patient)):
        detector, log = MrFaults(limits), EventLog()
        for sequence, acquired in enumerate(Patient(number, coils).frames(per_patient, number)):
            log.record(sequence, 0, detector.judge(frame_of(acquired, sequence)))
        findings.update(log.status()["findings"])
        alarms += sum(event["alarm"] for event in log.status()["events"])
    return {"clean_frames": max(1, n_frames // per_patient) * per_patient, "alarms": alarms, "findings": dict(findings)}


def time_to_alarm(coils: Coils, limits: Mapping[str, float], n_trials: int) -> list[dict[str, Any]]:
    """Frames from the first faulty one to the alarm, counting it; None where ten frames bring none."""
    rows = []
    for fault in RULE_OF:
        if fault == "slice_dropout":
            continue  # needs several slices; by the same votes
        taken = [_alarm_after(Patient(500 + t, coils), limits, fault, t) for t in range(n_trials)]
        within = sum(n is not None and n <= 3 for n in taken)
        rows.append({"fault": fault, "trials": n_trials, "within_3": within, "frames": taken})
    return rows


def _alarm_after(patient: Patient, limits: Mapping[str, float], fault: str, seed: int) -> int | None:
    detector, log, begin = MrFaults(limits), EventLog(), 12
    for sequence, acquired in enumerate(patient.frames(begin + 10, seed, fault, begin)):
        told = log.record(sequence, 0, detector.judge(frame_of(acquired, sequence)))
        if any(finding.severity == "alarm" for finding in told) and sequence >= begin:
            return sequence - begin + 1
    return None


class RealScene(Scene):
    """A measured slice as a scene: its coils' images are the truth."""

    @cached_property
    def maps(self) -> Kspace:
        return np.asarray(to_image(real_slice()) / np.maximum(self.truth, 1e-12), np.complex64)


def real_kspace() -> list[dict[str, Any]]:
    """The semi-real brain slice with noise of its level: clean, then three frames with each fault."""
    kspace = real_slice()
    corner = np.concatenate([kspace[:, :12, :24].ravel(), kspace[:, -12:, -24:].ravel()])
    noise = float(np.std(corner.view(np.float32)))
    truth = np.sqrt((np.abs(to_image(kspace)) ** 2).sum(axis=0)).astype(np.float32)
    rows = []
    for acceleration in (1, 2):
        scene = RealScene(truth, Coils.draw(np.random.default_rng(0), len(kspace)), noise, acceleration)
        for fault in ("", *(f for f in RULE_OF if f not in ("wrap", "slice_dropout"))):
            detector, log, rng = MrFaults(default_thresholds(RULES)), EventLog(), np.random.default_rng(1)
            kinds: list[set[str]] = []
            for sequence in range(15):
                acquired = acquire(scene, rng, fault if sequence >= 12 else "")
                kinds.append({f.kind for f in log.record(sequence, 0, detector.judge(frame_of(acquired, sequence)))})
            found = [bool(k & FINDS.get(fault, set())) for k in kinds[12:]]
            rows.append(
                {"fault": fault or "none", "acceleration": acceleration, "found_of_3": sum(found)}
                | {"findings_before": sum(bool(k) for k in kinds[:12]), "told": sorted(set().union(*kinds[12:]))}
            )
    return rows


def real_slices() -> dict[str, Any]:
    """The real T1 slices: as images, and as anatomy in simulated coils; findings with default thresholds."""
    slices = dicom_slices(T1_FILE)
    told: Counter[str] = Counter()
    detector = MrFaults(default_thresholds(RULES))
    for n, image in enumerate(slices):
        given = Acquired(np.zeros((1, 1, 1), np.complex64), np.arange(1), image)
        bare = frame_of(given, n, n)
        told.update(f"image {f.kind}" for f in detector.judge(Frame(**{**bare.__dict__, "attachments": {}})))
    for n, image in enumerate(slices[6:-6]):
        truth = np.ascontiguousarray(image[::2, ::2] / np.percentile(image, 99))
        scene = Scene(truth, Coils.draw(np.random.default_rng(n), 8), 0.02, 1 + n % 2)
        detector, rng = MrFaults(default_thresholds(RULES)), np.random.default_rng(n)
        for sequence in range(6):
            told.update(f"k-space {f.kind}" for f in detector.judge(frame_of(acquire(scene, rng), sequence)))
    return {"images": len(slices), "frames_from_kspace": 6 * len(slices[6:-6]), "findings": dict(told)}


def leave_one_out(coils: Coils, setup: Setup, limits: Mapping[str, float], n_patients: int) -> list[dict[str, Any]]:
    """For each fault: how much of it is noticed without the rules made for it; four faulty frames of each patient."""
    rows = []
    for fault, own in FINDS.items():
        if fault == "slice_dropout":
            continue  # needs several slices; without its rule it is a drop of the signal
        told: Counter[str] = Counter()
        n_found, unusual = 0, ([], [])  # type: ignore[var-annotated]
        for number in range(n_patients):
            detector = MrFaults({**limits, **dict.fromkeys(own & set(limits), np.inf)})
            for sequence, acquired in enumerate(Patient(700 + number, coils).frames(16, 700 + number, fault, 12)):
                kinds = {f.kind for f in detector.judge(frame_of(acquired, sequence))} - own
                others = {name: value for name, value in detector.measured.items() if name not in own}
                if sequence >= 8:
                    unusual[sequence >= 12].append(setup.unusual(others))
                if sequence >= 12:
                    told.update(kinds)
                    n_found += bool(kinds)
        rows.append(
            {"fault": fault, "frames": 4 * n_patients, "noticed": n_found / (4 * n_patients), "told": dict(told)}
            | {"auroc_unusual": auroc(*unusual)}
        )
    return rows


def speed() -> float:
    """Milliseconds of CPU per 8-coil 256² frame."""
    scene = Scene(cine_image(0), Coils.draw(np.random.default_rng(1), 8), 0.02, 1)
    frames = [acquire(scene, np.random.default_rng(i)) for i in range(8)]
    detector, times = MrFaults(default_thresholds(RULES)), []
    for sequence in range(60):
        given = frame_of(frames[sequence % 8], sequence)
        started = time.process_time()
        detector.judge(given)
        times.append(1e3 * (time.process_time() - started))
    return statistics.median(times[10:])


def print_results(results: dict[str, Any]) -> None:
    """Tables for people."""
    print(f"\nAUROC on {results['auroc'][0]['scenes']} held-out scenes; peer: {PEER}")
    print(f"{'fault':>14} {'rule':>14} {'rule':>8} {'first':>8} {'peer':>8}")
    for row in results["auroc"]:
        first = f"{row['auroc_first']:8.4f}" if "auroc_first" in row else f"{'-':>8}"
        print(f"{row['fault']:>14} {row['rule']:>14} {row['auroc_rule']:8.4f} {first} {row['auroc_peer']:8.4f}")
    clean = results["false_alarms"]
    print(f"\nafter commissioning: {clean['alarms']} alarms in {clean['clean_frames']} clean frames")
    print(f"single findings in them: {clean['findings'] or 'none'}")
    print(f"\n{'lasting fault':>14} {'alarm within 3 frames':>22}   frames to alarm")
    for row in results["time_to_alarm"]:
        print(f"{row['fault']:>14} {row['within_3']:>10} of {row['trials']:<8}   {row['frames']}")
    print(f"\n{'left out':>14} {'noticed by others':>18} {'AUROC of unusual':>17}   as")
    for row in results["leave_one_out"]:
        told = ", ".join(f"{kind} {n}" for kind, n in row["told"].items())
        print(f"{row['fault']:>14} {row['noticed']:>18.0%} {row['auroc_unusual']:>17.3f}   {told}")
    if "real_kspace" in results:
        print(f"\n{'real k-space':>14}  R  found of 3  findings in 12 clean frames before   told")
        for row in results["real_kspace"]:
            print(
                f"{row['fault']:>14} {row['acceleration']:2d} {row['found_of_3']:11d} {row['findings_before']:38d}   "
                f"{', '.join(row['told'])}"
            )
    if "real_slices" in results:
        print(f"\nreal T1 slices, clean: {results['real_slices']}")
    print(f"\n8 coils, 256²: {results['speed_ms']:.2f} ms")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--scenes", type=int, default=60, help="held-out scenes for the AUROC")
    parser.add_argument("--clean-frames", type=int, default=10_000, help="for the false alarms")
    parser.add_argument("--trials", type=int, default=10, help="lasting faults of each kind")
    given = parser.parse_args()
    described = machine()
    print(", ".join(f"{key} {value}" for key, value in described.items()), flush=True)
    coils = Coils.draw(np.random.default_rng(77), 8)
    results: dict[str, Any] = {"speed_ms": speed(), "auroc": auroc_table(given.scenes)}
    setup = commissioned(coils)
    limits = default_thresholds(RULES) | {name: learnt.threshold for name, learnt in setup.rules.items()}
    results["thresholds"] = {name: round(value, 3) for name, value in limits.items()}
    results["time_to_alarm"] = time_to_alarm(coils, limits, given.trials)
    results["leave_one_out"] = leave_one_out(coils, setup, limits, given.trials)
    if REAL_FILE.exists():
        results["real_kspace"] = real_kspace()
    if T1_FILE.exists():
        results["real_slices"] = real_slices()
    results["false_alarms"] = false_alarms(coils, limits, given.clean_frames)
    print_results(results)
    if given.json:
        given.json.write_text(json.dumps({"machine": described, **results}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
