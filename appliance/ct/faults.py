# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults of CT, found by rules on images in Hounsfield units, slice by slice.

Defaults stand above clean data: of 114 real slices (a head, a skull phantom scanned twice) none has more than 0.41 of a
ring, noise of one direction 1.51 times the usual, views 1.60 times fainter or 1.71 times as strong as their neighbours;
of 60 simulated ones (dead leaves, noise of 4 to 25 HU) none more than 0.36, 1.65, 1.64 and 1.63.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import to_host
from appliance.ct.rings import strongest_ring
from appliance.ct.views import SMALLEST_PX, Views, measure_views
from appliance.faults.detector import Rule
from appliance.faults.not_finite import find_not_finite
from appliance.frames import IMAGE_AXES, Finding, Frame, Scan

NARROW_DEGREES = 4.0  # an arc is over in a few milliseconds; what lasts longer is the patient's thickness


class CtFaults:
    """One scan. Every slice is judged by itself: neighbours differ too much to be each other's baseline."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "rings": Rule("agreement of a turn about the image's centre on a ring, of 1", 0.5, 0.42),
        "streaks": Rule("noise of the worst 20 degrees, times the middle direction's", 1.7, 1.5),
        "missing_views": Rule("times that some views are fainter than those within 10 degrees", 1.7, 1.5),
        "tube_arcing": Rule("fine structure along single views, times that within 10 degrees", 1.9, 1.65),
    }

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._thresholds = thresholds
        self._slices = True  # and not projections, reformations or reports
        self.measured: dict[str, float] = {}
        self.unchecked: list[str] = []
        self.snr_db: float | None = None

    @staticmethod
    def setup(scan: Scan) -> str:
        """One for all: matrices, kernels and doses are what a site commissions over."""
        return "CT images"

    def begin(self, scan: Scan) -> None:
        """Raise ValueError for anything but images. Of what is no original slice only the numbers are judged.

        References
        ----------
        PS3.3 C.8.2.1.1.1 (CT image type).
        """
        if scan.axes != IMAGE_AXES:
            raise ValueError(f"expected CT images (y, x), got ({', '.join(scan.axes)}); put it before volume stages")
        kind = [*scan.attributes.get("image_type", ())]
        self._slices = not kind or (kind[0] == "ORIGINAL" and "LOCALIZER" not in kind)

    def judge(self, frame: Frame) -> list[Finding]:
        """Return the faults of one slice, (y, x) in HU."""
        image = np.asarray(to_host(frame.array if frame.original is None else frame.original), np.float32)
        self.measured, self.unchecked = {}, []
        unusable = _find_unusable(image)
        if unusable or not self._slices:
            self.unchecked = list(self.RULES)
            return unusable
        return [*self._find_rings(image), *self._find_view_faults(image)]

    def _find_rings(self, image: NDArray[np.float32]) -> list[Finding]:
        if min(image.shape) < SMALLEST_PX:
            self.unchecked.append("rings")
            return []
        ring, limit = strongest_ring(image), self._thresholds["rings"]
        self.measured["rings"] = ring.agreement
        if ring.agreement <= limit:
            return []
        message = (
            f"ring of {ring.height_hu:+.0f} HU, {ring.radius_px:.0f} pixels from the centre of rotation, "
            f"on which {100 * ring.agreement:.0f} % of the turn agree; calibrate the detector with an air scan"
        )
        return [Finding("rings", message, "warning", ring.agreement, limit, {"radius_px": ring.radius_px})]

    def _find_view_faults(self, image: NDArray[np.float32]) -> list[Finding]:
        views = measure_views(image)
        if views is None:
            self.unchecked += ["streaks", "missing_views", "tube_arcing"]
            return []
        narrow = views.width_degrees <= NARROW_DEGREES
        broad = views.unevenness if narrow else max(views.unevenness, views.excess)
        self.measured |= {"streaks": broad, "missing_views": views.loss}
        self.measured["tube_arcing"] = views.excess if narrow else 1.0
        rules = {"streaks": _streaks, "missing_views": _missing_views, "tube_arcing": _tube_arcing}
        return [
            Finding(name, *describe(views, self.measured[name]), self.measured[name], limit, where)
            for name, describe in rules.items()
            if self.measured[name] > (limit := self._thresholds[name])
            for where in [{"angle_degrees": _angle(name, views)}]
        ]


def _find_unusable(image: NDArray[np.float32]) -> list[Finding]:
    found = find_not_finite(image)
    if not found and (not image.size or image.max() == image.min()):
        return [Finding("all_zero", "every pixel has the same value; check the scanner and repeat the scan", "alarm")]
    return found


def _angle(rule: str, views: Views) -> float:
    """Degrees of the rays' normal from the image's x axis, towards y."""
    return {"streaks": views.strongest_degrees, "missing_views": views.loss_degrees}.get(rule, views.excess_degrees)


def _streaks(views: Views, times: float) -> tuple[str, Any]:
    along = (views.strongest_degrees + 90) % 180
    return (
        f"streaks along {along:.0f} degrees: {times:.1f} times the usual noise there; too few photons come through, "
        "raise the dose, or move arms and metal out of the beam",
        "warning",
    )


def _missing_views(views: Views, times: float) -> tuple[str, Any]:
    return (
        f"views about {views.loss_degrees:.0f} degrees are missing or weak: {times:.1f} times fainter than their "
        "neighbours; repeat the scan, check the data link of the gantry if it stays",
        "warning",
    )


def _tube_arcing(views: Views, times: float) -> tuple[str, Any]:
    return (
        f"single views about {views.excess_degrees:.0f} degrees are {times:.1f} times as noisy as their neighbours: "
        "the tube may have arced; repeat the slice, call service if it comes back",
        "warning",
    )
