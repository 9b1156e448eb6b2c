# SPDX-License-Identifier: Apache-2.0
"""Find faults of the acquisition, by rules for its modality; the image itself is never changed.

In:  (y, x) of any real dtype: MR with attachments["kspace"] (coil, ky, kx) complex64, or that k-space itself; CT in HU;
     B-mode ultrasound, 0 black to 255 white; any device
Out: the same frame, with `findings`
Rules: appliance/mri/rules.py, appliance/ct/faults.py, appliance/ultrasound/faults.py. A finding is a warning; one that
persists in three of five frames is an alarm. Thresholds come from `nearscan commission`, before that from defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator

from appliance.context import Context
from appliance.ct.faults import CtFaults
from appliance.errors import StageError, StorageError
from appliance.faults.commissioned import Commissioned, Setup, commissioned_path, read_commissioned, thresholds_in_force
from appliance.faults.detector import Detector
from appliance.faults.events import EventLog
from appliance.faults.measurements import Recorder, recorder
from appliance.frames import Frame, Scan
from appliance.mri.faults import MrFaults
from appliance.ultrasound.faults import UltrasoundFaults
from operators import OperatorSettings

DETECTORS: Mapping[str, type[Detector]] = {"MR": MrFaults, "CT": CtFaults, "US": UltrasoundFaults}
ALWAYS = ("not_finite", "all_zero")
KEEP = 0.95  # of the running "unusual" score


def _known() -> dict[str, float | None]:
    return {name: rule.default for detector in DETECTORS.values() for name, rule in detector.RULES.items()}


class Settings(OperatorSettings):
    """Which rules run, and thresholds that stand over those of commissioning."""

    rules: tuple[str, ...] = Field((), description="Rules to run; all of the modality where none is named.")
    thresholds: dict[str, float] = Field(
        {}, description="By rule, larger is less sensitive; for rules where commissioning is not to decide."
    )

    @field_validator("rules", "thresholds")
    @classmethod
    def _are_known(cls, given: Any) -> Any:
        for name in given:
            if name not in _known() or (isinstance(given, dict) and _known()[name] is None):
                raise ValueError(f"unknown rule {name!r}; known: {', '.join(sorted(_known()))}")
        return given


class DetectAnomalies:
    """One scan: its detector, what happened when, and what is an alarm now."""

    def __init__(self, settings: Settings, context: Context, commissioned: Commissioned | None) -> None:
        self._settings, self._context, self._commissioned = settings, context, commissioned
        self._recorder: Recorder = recorder(context.data_dir / "faults", context.pipeline)
        self._detector: Detector | None = None
        self._setup_name, self._setup, self._unusual = "", None, 0.0
        self._rules: tuple[str, ...] = ()
        self._events = EventLog()

    def begin(self, scan: Scan) -> Scan:
        """Choose the detector and its thresholds."""
        kind = DETECTORS.get(scan.modality)
        if kind is None:
            raise StageError(f"detect_anomalies: no rules for {scan.modality!r}; remove it here", scan.scan_id)
        self._setup_name = kind.setup(scan)
        setups = self._commissioned.setups if self._commissioned else {}
        self._setup: Setup | None = setups.get(self._setup_name)
        thresholds = thresholds_in_force(kind.RULES, self._setup, self._settings.thresholds)
        self._rules = tuple(thresholds)
        thresholds |= {name: math.inf for name in thresholds if not self._wanted(name)}
        self._detector = kind(thresholds)
        try:
            self._detector.begin(scan)
        except ValueError as error:
            raise StageError(f"detect_anomalies: {error}", scan.scan_id) from error
        self._context.alarm("acquisition", "")
        return scan

    def frame(self, frame: Frame) -> Frame:
        assert self._detector is not None, "begin comes first"
        found = [f for f in self._detector.judge(frame) if self._wanted(f.kind)]
        measured = self._detector.measured
        self._recorder.add(self._setup_name, self._rules, measured)
        if self._setup:
            self._unusual = KEEP * self._unusual + (1 - KEEP) * self._setup.unusual(measured)
        told = self._events.record(frame.sequence, frame.position.slice, found)
        self._context.alarm("acquisition", "; ".join(self._events.alarms()))
        return dataclasses.replace(frame, findings=(*frame.findings, *told)) if told else frame

    def _wanted(self, kind: str) -> bool:
        return not self._settings.rules or kind in (*self._settings.rules, *ALWAYS)

    def end(self) -> Iterable[Frame]:
        """Nothing is held back."""
        return ()

    def status(self) -> dict[str, Any]:
        """Counts by kind, the newest events, the last frame's measurements, and how far commissioning has come."""
        own = self._detector
        seen = {"measured": dict(own.measured), "unchecked": [*own.unchecked], "snr_db": own.snr_db} if own else {}
        return {**self._events.status(), **seen, "commissioned": self._how_far(), "unusual": round(self._unusual, 2)}

    def _how_far(self) -> str:
        if self._setup:
            return f"for {self._setup_name}, from {self._setup.n_frames} frames"
        what = f" for {self._setup_name}" if self._commissioned and self._setup_name else ""
        advice = f"run 'nearscan commission {self._context.pipeline}' after 500 clean frames"
        return f"not commissioned{what}: default thresholds; {advice}"


def make(settings: Settings, context: Context) -> DetectAnomalies:
    """Make the stage for one scan. Without what commissioning learnt defaults are used."""
    problem, commissioned = "", None
    try:
        commissioned = read_commissioned(commissioned_path(context.data_dir, context.pipeline))
    except StorageError as error:
        problem = f"default thresholds are used: {error}"
    context.alarm("commissioning", problem)
    return DetectAnomalies(settings, context, commissioned)
