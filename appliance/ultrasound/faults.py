# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults of ultrasound, found by rules on B-mode images, 0 black to 255 white.

Defaults come from clean data: over 124 real frames of a freehand scan and of a water tank no line is darker than its
neighbours by more than half on more than half of its depth, 7 % of the picture is white, and no strip loses contact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import grey_closing

from appliance.arrays import to_host
from appliance.faults.detector import Rule
from appliance.faults.not_finite import find_not_finite
from appliance.frames import IMAGE_AXES, Finding, Frame, Scan

Image = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

WHITE = 245.0  # of 255: frame grabbers do not reach the end
BLACK = 3.0
N_STRIPS = 32  # side by side
NEAR = (0.08, 0.35)  # of the depth: below the ringing of the probe, above most bone
LOST = 0.35  # part of its usual level that a strip with contact keeps
SEEN = 12.0  # grey level that a strip must usually have
HISTORY_FRAMES, READY_FRAMES = 16, 3
WIDEST_LINE = 0.02  # of the picture's width
LIT = 25.0  # grey level beside a line from which on its absence can be seen
FEWEST_ROWS = 24
EVERY_ROW = 2  # rows that are looked at
SAME = 0.999  # of the pixels unchanged: a clock beside the picture may run on
CLIP_FRAME_S = 1 / 30  # of stored clips, whose frames have one time
STRAIGHT = 0.05  # of its width that a picture of parallel lines may narrow from bottom to top


class UltrasoundFaults:
    """One scan, with what was usual in its frames so far."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "probe_decoupling": Rule("part of the width that lost its near echoes, against the last frames", 0.25, 0.1),
        "dropped_lines": Rule("part of the depth on which a line is dark between bright neighbours", 0.75, 0.5),
        "gain_saturation": Rule("part of the picture that is white", 0.15, 0.08),
        "frozen_image": Rule("time since the picture last changed, in seconds", 0.5, 0.1),
    }

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._thresholds = thresholds
        self.measured: dict[str, float] = {}
        self.unchecked: list[str] = []
        self.snr_db: float | None = None
        self._clips = False  # frames of the same time are one clip, those of another time show something else
        self._brightest: Image | None = None  # of each pixel in this scan: where the picture is
        self._levels: deque[Image] = deque(maxlen=HISTORY_FRAMES)  # of the strips, in clean frames
        self._last: Image | None = None
        self._last_ns, self._still_s = 0, 0.0

    @staticmethod
    def setup(scan: Scan) -> str:
        """One for all: probes and presets are what a site commissions over."""
        return "ultrasound images"

    def begin(self, scan: Scan) -> None:
        """Raise ValueError for anything but grey images."""
        if scan.axes != IMAGE_AXES:
            raise ValueError(f"expected grey images (y, x), got ({', '.join(scan.axes)}); send B-mode without colour")
        self._clips = bool(scan.attributes.get("clips"))

    def judge(self, frame: Frame) -> list[Finding]:
        """Return the faults of one frame, (y, x)."""
        image = np.asarray(to_host(frame.array if frame.original is None else frame.original), np.float32)
        self.measured, self.unchecked = {}, []
        unusable = _find_unusable(image)
        if unusable:
            self.unchecked = list(self.RULES)
            return unusable
        frozen = self._find_frozen(image, self._follow(image, frame.acquired_ns))
        self._brightest = image if self._brightest is None else np.maximum(self._brightest, image)
        live = _picture(self._brightest > BLACK)
        if live is None:
            self.unchecked = [rule for rule in self.RULES if rule != "frozen_image"]
            return frozen
        rows, columns = live
        picture, mask = image[rows, columns], self._brightest[rows, columns] > BLACK
        found = [*self._find_decoupling(picture), *self._find_dropped_line(picture, mask, columns.start)]
        return [*frozen, *found, *self._find_saturation(picture, mask)]

    def _follow(self, image: Image, acquired_ns: int) -> float:
        """Return the seconds since the frame before, and forget all where this one begins another clip."""
        step_s = (acquired_ns - self._last_ns) / 1e9
        another_clip = self._clips and step_s != 0
        if another_clip or self._last is None or self._last.shape != image.shape:
            self._last = self._brightest = None
            self._levels.clear()
        self._last_ns = acquired_ns
        return CLIP_FRAME_S if self._clips else max(step_s, 0.0)

    def _find_frozen(self, image: Image, step_s: float) -> list[Finding]:
        last, self._last = self._last, image
        same = last is not None and np.count_nonzero(last == image) >= SAME * image.size
        self._still_s = still_s = self._still_s + step_s if same else 0.0
        self.measured["frozen_image"], limit = still_s, self._thresholds["frozen_image"]
        if still_s <= limit:
            return []
        message = (
            f"the picture has not changed for {still_s:.2f} s: it is not live; "
            "release Freeze on the ultrasound machine, else check the video cable"
        )
        return [Finding("frozen_image", message, "alarm", still_s, limit)]

    def _find_decoupling(self, picture: Image) -> list[Finding]:
        """Compare the middle grey level of each strip's near zone with that of the last clean frames."""
        top, bottom = (int(part * len(picture)) for part in NEAR)
        strips = np.array_split(picture[top : max(bottom, top + 1) : EVERY_ROW], N_STRIPS, axis=1)
        levels = np.array([np.median(strip) if strip.size else 0 for strip in strips])
        usual = np.median(self._levels, axis=0) if len(self._levels) >= READY_FRAMES else np.zeros(N_STRIPS)
        seen = usual > SEEN
        if np.count_nonzero(seen) < N_STRIPS // 4:
            self._levels.append(levels)
            self.unchecked.append("probe_decoupling")
            return []
        lost = seen & (levels < LOST * usual)
        share, limit = float(np.count_nonzero(lost) / np.count_nonzero(seen)), self._thresholds["probe_decoupling"]
        self.measured["probe_decoupling"] = share
        if share <= limit:
            self._levels.append(levels)
            return []
        first, last = np.flatnonzero(lost)[[0, -1]] / N_STRIPS
        message = (
            f"the probe lost contact over {100 * share:.0f} % of its width, between {100 * first:.0f} and "
            f"{100 * (last + 1 / N_STRIPS):.0f} % from the left; add gel or press the probe on"
        )
        where = {"first_percent": float(100 * first), "last_percent": float(100 * (last + 1 / N_STRIPS))}
        return [Finding("probe_decoupling", message, "warning", share, limit, where)]

    def _find_dropped_line(self, picture: Image, mask: Bools, left: int) -> list[Finding]:
        """Find the column that is dark on most of the rows where both its sides are bright."""
        if not _parallel(mask):
            self.unchecked.append("dropped_lines")  # lines fan out
            return []
        shown = picture[::EVERY_ROW]
        width = max(3, round(WIDEST_LINE * shown.shape[1]))
        sides = grey_closing(shown, size=(1, 2 * width + 1))
        lit = sides > LIT
        n_lit = np.count_nonzero(lit, axis=0)
        n_dark = np.count_nonzero(lit & (shown < sides / 4), axis=0)
        dark = np.where(n_lit >= FEWEST_ROWS, n_dark / np.maximum(n_lit, 1), 0)
        column = int(dark.argmax())
        share, limit = float(dark[column]), self._thresholds["dropped_lines"]
        self.measured["dropped_lines"] = share
        if share <= limit:
            return []
        n_lines = np.count_nonzero(np.diff(np.flatnonzero(dark > limit)) > 1) + 1
        more = f" ({n_lines - 1} more in this frame)" if n_lines > 1 else ""
        message = (
            f"scan line at column {left + column} is dark on {100 * share:.0f} % of its depth{more}; "
            "check the probe's connector, try another probe: an element may have failed"
        )
        return [Finding("dropped_lines", message, "warning", share, limit, {"column": left + column})]

    def _find_saturation(self, picture: Image, mask: Bools) -> list[Finding]:
        if self._brightest is None or self._brightest.max() > 255:
            self.unchecked.append("gain_saturation")  # not a display's grey levels: white is not known
            return []
        share, limit = float(np.mean(picture[mask] >= WHITE)), self._thresholds["gain_saturation"]
        self.measured["gain_saturation"] = share
        if share <= limit:
            return []
        message = f"{100 * share:.0f} % of the picture is white: echoes there cannot be told apart; lower the gain"
        return [Finding("gain_saturation", message, "warning", share, limit)]


def _find_unusable(image: Image) -> list[Finding]:
    found = find_not_finite(image)
    if not found and not image.any():
        return [Finding("all_zero", "the picture is black; check the probe, the video cable and Freeze", "alarm")]
    return found


def _picture(seen: Bools) -> tuple[slice, slice] | None:
    """Return rows and columns of the box that holds all that was ever seen, None where that is next to nothing."""
    rows, columns = (np.flatnonzero(np.count_nonzero(seen, axis=axis) > 2) for axis in (1, 0))
    if len(rows) < FEWEST_ROWS or len(columns) < N_STRIPS:
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _parallel(mask: Bools) -> bool:
    """Whether the picture is as wide at its top as in its middle, as that of a linear probe is."""
    top, middle = (mask[int(part * len(mask)) :][: len(mask) // 8].any(axis=0) for part in (0.02, 0.45))
    reach = [np.flatnonzero(rows)[[0, -1]] if rows.any() else np.array([0, 0]) for rows in (top, middle)]
    return bool(np.abs(reach[0] - reach[1]).max() <= STRAIGHT * mask.shape[1])
