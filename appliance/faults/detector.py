# SPDX-License-Identifier: Apache-2.0
"""What a detector of one modality offers: appliance/mri/faults.py, appliance/ct/faults.py, appliance/ultrasound/…"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from appliance.frames import Finding, Frame, Scan


class Rule(NamedTuple):
    """One kind of fault and what is measured of a frame to find it; larger is worse.

    `default` is the threshold until a site is commissioned: conservative. `least` is the lowest that commissioning may
    set, because less is not worth an alarm. A rule that knows only yes or no has neither.
    """

    what: str  # what is measured, with its unit, e.g. "displacement since the usual frame, pixels"
    default: float | None = None
    least: float | None = None


class Detector(Protocol):
    """One scan. `thresholds` holds one for each rule of RULES that has a default.

    A rule that a frame gives no basis for is named in `unchecked` and absent from `measured`. Faults that cannot be
    chance (values that are no numbers, no data at all) are findings of severity "alarm"; all others are "warning",
    and become alarms when they persist (appliance/faults/events.py).
    """

    RULES: ClassVar[Mapping[str, Rule]]

    measured: dict[str, float]  # of the last frame, by rule
    unchecked: list[str]
    snr_db: float | None  # of the last frame; None: not measured

    def __init__(self, thresholds: Mapping[str, float]) -> None: ...

    @staticmethod
    def setup(scan: Scan) -> str:
        """Return what must be the same for thresholds to hold, in words for people: "8 coils, acceleration 2"."""

    def begin(self, scan: Scan) -> None:
        """Raise ValueError when this scan holds nothing that can be judged."""

    def judge(self, frame: Frame) -> list[Finding]:
        """Return what is wrong with this frame; set `measured` and `unchecked`. Never modifies it."""


def default_thresholds(rules: Mapping[str, Rule]) -> dict[str, float]:
    """Return the threshold of each rule that has one."""
    return {name: rule.default for name, rule in rules.items() if rule.default is not None}
