# SPDX-License-Identifier: Apache-2.0
"""Find faults of an MRI acquisition by rules on raw k-space; the image itself is never changed.

In:  (y, x) float32 with attachments["kspace"] (coil, ky, kx) complex64, or that k-space itself, any device
Out: the same frame, with `findings`
Rules and their limits: appliance/mri/quality.py. Without k-space only what an image shows is checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from pydantic import Field

from appliance.arrays import to_host
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Finding, Frame, Scan
from appliance.mri.baseline import Baselines
from appliance.mri.events import EventLog
from appliance.mri.image_quality import find_ghosting, find_unusable_image, ghost_level, judge_image
from appliance.mri.quality import RULES, Limits, judge
from operators import OperatorSettings

Rule = Literal["spike", "coil_drop", "noisy_coil", "clipping", "ghosting", "signal_drop", "low_snr", "frozen"]
KSPACE_AXES = ("coil", "ky", "kx")


class Settings(OperatorSettings):
    """Which rules run, and how far from normal is a fault."""

    rules: tuple[Rule, ...] = Field(RULES, description="Rules to run; all by default.")
    spike: float = Field(4, ge=2, le=1000, description="Spike: times the largest of its neighbours in k-space.")
    coil_drop: float = Field(0.3, gt=0, lt=1, description="Coil drop: part of its usual signal that a coil must keep.")
    noisy_coil: float = Field(2, ge=1.2, le=100, description="Noisy coil: times its usual noise.")
    ghosting: float = Field(0.08, gt=0, le=1, description="Ghosting: part of the body's signal seen beside it.")
    signal_drop: float = Field(0.25, gt=0, lt=1, description="Signal drop: part of the usual signal that is lost.")
    low_snr_db: float = Field(6, ge=1, le=60, description="Low SNR: loss against the usual SNR, in dB.")


class DetectAnomalies:
    """One scan: a running baseline for each slice position, the findings, and what happened when."""

    def __init__(self, settings: Settings) -> None:
        self._rules = tuple(settings.rules)
        self._limits = Limits(**settings.model_dump(exclude={"rules"}))
        self._baselines = Baselines()
        self._events = EventLog()
        self._measured: dict[str, Any] = {"snr_db": None, "ghosting": None, "unchecked": []}

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
        image = None
        if frame.is_image:
            image = to_host(frame.array if frame.original is None else frame.original)
        found = self._judge(frame, kspace, image)
        if not found and image is not None:
            found = self._check_image(image)
        told = self._events.record(frame.sequence, frame.position.slice, found)
        return dataclasses.replace(frame, findings=(*frame.findings, *told)) if told else frame

    def _judge(self, frame: Frame, kspace: Any, image: Any) -> list[Finding]:
        """Judge the raw data, or the image where there is none, against what is usual."""
        key = (frame.position.slice, frame.position.contrast, frame.position.set)
        if kspace is None:
            key += image.shape
            found, levels = judge_image(image, self._baselines.get(key), self._limits)
            unchecked = ["spike", "coil_drop", "noisy_coil", "clipping", "low_snr"]
        else:
            raw, ky, calibration = _raw(frame, kspace)
            key += (raw.shape[0], raw.shape[2], ky[~calibration].tobytes())
            baseline = self._baselines.get(key)
            found, levels, unchecked = judge(raw, ky, calibration, baseline, self._limits, self._rules)
        found = [f for f in found if f.kind in (*self._rules, "not_finite", "all_zero")]
        changed = bool(found) and all(f.kind in ("signal_drop", "low_snr") for f in found)
        self._baselines.learn(key, levels, clean=not found, changed=changed)
        self._measured |= {"snr_db": levels.snr_db, "unchecked": unchecked}
        return found

    def _check_image(self, image: Any) -> list[Finding]:
        found = find_unusable_image(image)
        if found or "ghosting" not in self._rules or image.ndim != 2:
            return found
        self._measured["ghosting"] = ghost = ghost_level(image)
        if ghost is None:
            self._measured["unchecked"] = [*self._measured["unchecked"], "ghosting"]
        return find_ghosting(ghost, self._limits.ghosting)

    def end(self) -> Iterable[Frame]:
        """Nothing is held back."""
        return ()

    def status(self) -> dict[str, Any]:
        """Counts by kind, the newest events, the last frame's levels, and the rules it gave no basis for."""
        return {**self._events.status(), **self._measured}


def _raw(frame: Frame, kspace: Any) -> tuple[Any, Any, Any]:
    """Return k-space, line indices and which lines only calibrate, on the host."""
    raw = np.asarray(to_host(kspace), np.complex64)
    ky = np.asarray(to_host(frame.attachments.get("ky", np.arange(raw.shape[1]))))
    calibration = np.asarray(to_host(frame.attachments.get("calibration_only", np.zeros(len(ky), bool))))
    if len(ky) != raw.shape[1] or len(ky) != len(calibration) or not raw.size or calibration.all():
        raise ValueError(
            f"detect_anomalies: k-space of shape {raw.shape} does not fit {len(ky)} line indices, of which "
            f"{int(calibration.sum())} only calibrate; the source must send a frame's lines with it"
        )
    return raw, ky, calibration


def make(settings: Settings, context: Context) -> DetectAnomalies:
    """Make the stage for one scan."""
    del context
    return DetectAnomalies(settings)
