# SPDX-License-Identifier: Apache-2.0
"""Find faults of an MRI acquisition by rules on raw k-space; the image itself is never changed.

In:  (y, x) float32 with attachments["kspace"] (coil, ky, kx) complex64, or that k-space itself, any device
Out: the same frame, with `findings`
Rules and their limits: appliance/mri/quality.py. Without k-space only what an image shows is checked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from appliance.arrays import to_host
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Finding, Frame, Scan
from appliance.mri import image_quality, quality
from operators import OperatorSettings

Rule = Literal["spike", "coil_drop", "noisy_coil", "clipping", "ghosting", "signal_drop", "low_snr", "frozen"]
KSPACE_AXES = ("coil", "ky", "kx")
N_EVENTS = 200
N_BASELINES = 128  # slice positions, contrasts and sampling patterns that are remembered
ADOPT_FRAMES = 50  # after so many frames in a row a changed signal level is the new normal


class Settings(OperatorSettings):
    """Which rules run, and how far from normal is a fault."""

    rules: tuple[Rule, ...] = Field(quality.RULES, description="Rules to run; all by default.")
    spike: float = Field(4, ge=2, le=1000, description="Spike: times the largest of its neighbours in k-space.")
    coil_drop: float = Field(0.3, gt=0, lt=1, description="Coil drop: part of its usual signal that a coil must keep.")
    noisy_coil: float = Field(2, ge=1.2, le=100, description="Noisy coil: times its usual noise.")
    ghosting: float = Field(0.1, gt=0, le=1, description="Ghosting: part of the body's signal seen beside it.")
    signal_drop: float = Field(0.25, gt=0, lt=1, description="Signal drop: part of the usual signal that is lost.")
    low_snr_db: float = Field(6, ge=1, le=60, description="Low SNR: loss against the usual SNR, in dB.")


class DetectAnomalies:
    """One scan: a running baseline for each slice position, the findings, and what happened when."""

    def __init__(self, settings: Settings) -> None:
        self._rules = tuple(settings.rules)
        self._limits = quality.Limits(**settings.model_dump(exclude={"rules"}))
        self._baselines: OrderedDict[tuple[Any, ...], quality.Baseline] = OrderedDict()
        self._changed: Counter[tuple[Any, ...]] = Counter()  # frames in a row with another signal level
        self._counts: Counter[str] = Counter()
        self._events: deque[dict[str, Any]] = deque(maxlen=N_EVENTS)
        self._open: dict[int, dict[tuple[Any, ...], dict[str, Any]]] = {}  # slice -> (kind, coil) -> event
        self._levels: dict[str, float | None] = {"snr_db": None, "ghosting": None}
        self._unchecked: list[str] = []

    def begin(self, scan: Scan) -> Scan:
        """Take MR k-space or MR images."""
        if scan.modality != "MR":
            raise StageError(
                f"detect_anomalies: its rules are for MR, got {scan.modality!r}; remove it from this pipeline",
                scan.scan_id,
            )
        if scan.axes != KSPACE_AXES and (scan.axes[-2:] != ("y", "x") or "coil" in scan.axes):
            raise StageError(
                f"detect_anomalies: expected axes (coil, ky, kx) or (y, x), got ({', '.join(scan.axes)}); "
                "put it after reconstruct",
                scan.scan_id,
            )
        return scan

    def frame(self, frame: Frame) -> Frame:
        """Return `frame` with what was found added."""
        kspace = frame.array if frame.axes == KSPACE_AXES else frame.attachments.get("kspace")
        image = frame.array if frame.is_image else None
        original = frame.original if image is not None and frame.original is not None else image
        found = [] if kspace is None else self._judge_kspace(frame, to_host(kspace))
        if original is not None and not found:
            found = self._judge_image(frame, to_host(original), alone=kspace is None)
        found = self._record(frame, found)
        return dataclasses.replace(frame, findings=(*frame.findings, *found)) if found else frame

    def _judge_kspace(self, frame: Frame, kspace: Any) -> list[Finding]:
        kspace = np.asarray(kspace, np.complex64)
        ky = np.asarray(to_host(frame.attachments.get("ky", np.arange(kspace.shape[1]))))
        calibration = np.asarray(to_host(frame.attachments.get("calibration_only", np.zeros(len(ky), bool))))
        if len(ky) != kspace.shape[1] or len(ky) != len(calibration) or not kspace.size or calibration.all():
            raise ValueError(
                f"detect_anomalies: k-space of shape {kspace.shape} does not fit {len(ky)} line indices, of which "
                f"{int(calibration.sum())} only calibrate; the source must send a frame's lines with it"
            )
        baseline, key = self._baseline(frame, kspace.shape[0], kspace.shape[2], ky[~calibration].tobytes())
        found, levels, self._unchecked = quality.judge(kspace, ky, calibration, baseline, self._limits, self._rules)
        self._levels["snr_db"] = levels.snr_db
        self._learn(key, baseline, levels, found)
        return found

    def _judge_image(self, frame: Frame, image: Any, alone: bool) -> list[Finding]:
        found = image_quality.find_unusable_image(image)
        if found:
            return found
        if alone:
            baseline, key = self._baseline(frame, *image.shape)
            levels = image_quality.measure_image(image)
            found = quality.find_frozen(levels, baseline) + quality.find_level_changes(levels, baseline, self._limits)
            self._unchecked = ["spike", "coil_drop", "noisy_coil", "clipping", "low_snr"]
            self._learn(key, baseline, levels, found)
        ghost = image_quality.ghost_level(image) if image.ndim == 2 else None
        self._levels["ghosting"] = ghost
        found = found or image_quality.find_ghosting(ghost, self._limits.ghosting)
        return [f for f in found if f.kind in self._rules]

    def _baseline(self, frame: Frame, *shape: Any) -> tuple[quality.Baseline, tuple[Any, ...]]:
        key = (frame.position.slice, frame.position.contrast, frame.position.set, *shape)
        baseline = self._baselines.setdefault(key, quality.Baseline())
        self._baselines.move_to_end(key)
        if len(self._baselines) > N_BASELINES:
            self._baselines.popitem(last=False)
        return baseline, key

    def _learn(self, key: Any, baseline: quality.Baseline, levels: quality.Levels, found: list[Finding]) -> None:
        """Let only clean frames into the baseline, and a new signal level after ADOPT_FRAMES of it."""
        if not found:
            baseline.accept(levels)
        only_level = bool(found) and all(f.kind in ("signal_drop", "low_snr") for f in found)
        self._changed[key] = self._changed[key] + 1 if only_level else 0
        if self._changed[key] >= ADOPT_FRAMES:
            baseline.forget()

    def _record(self, frame: Frame, found: list[Finding]) -> list[Finding]:
        """Count the findings; one that was there in the slice's last frame too prolongs its event and says so."""
        before, now, told = self._open.get(frame.position.slice, {}), {}, []
        for finding in found:
            self._counts[finding.kind] += 1
            key = (finding.kind, finding.where.get("coil"))
            event = before.get(key)
            if event is None:
                event = {"kind": finding.kind, "sequence": frame.sequence, "last_sequence": frame.sequence}
                event |= {"where": dict(finding.where), "message": finding.message}
                self._events.append(event)
            else:
                event["last_sequence"] = frame.sequence
                message = f"{finding.message} (since frame {event['sequence']})"
                finding = dataclasses.replace(finding, message=message)
            now[key] = event
            told.append(finding)
        self._open[frame.position.slice] = now
        return told

    def end(self) -> Iterable[Frame]:
        """Nothing is held back."""
        return ()

    def status(self) -> dict[str, Any]:
        """Counts by kind, the newest events, the last frame's levels, and the rules it gave no basis for."""
        events = [dict(event) for event in list(self._events)]
        return {"findings": dict(self._counts), "events": events, **self._levels, "unchecked": list(self._unchecked)}


def make(settings: Settings, context: Context) -> DetectAnomalies:
    """Make the stage for one scan."""
    del context
    return DetectAnomalies(settings)
