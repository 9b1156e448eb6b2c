# SPDX-License-Identifier: Apache-2.0
"""Match images with poses that arrive separately, by their time stamps.

Rule: no threads and no clock of its own; times come as arguments, ns.

Images and poses must be timed by one clock, or by clocks that agree (PLUS times both): the time stamps are compared as
they are. How late both arrive, in the last seconds (poses.Clock) and now, shows where the clocks do not agree: then
nothing is matched. No difference is corrected, because a slow way and a wrong clock look the same from here.
A time stamp that goes back forgets all poses: those of before may have the times of images to come.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from appliance.frames import Affine, Tracking
from appliance.igtl.rigid import to_lps
from appliance.ultrasound.place_image import image_in_lps, pose_fault, split
from appliance.ultrasound.poses import Clock, Found, Track

Place = tuple[Tracking | None, Affine | None]

MOST_WAITING = 16  # images; a newer one ends the wait of the oldest


@dataclass(frozen=True)
class Limits:
    """Beyond these nothing is matched."""

    max_skew_ns: int  # between how late images and poses arrive
    max_gap_ns: int  # between two poses
    wait_ns: int  # for the pose after an image


@dataclass(frozen=True)
class Chain:
    """Which transforms lead from the image to the reference. `to_probe` maps pixel index to the probe, RAS mm."""

    probe: str
    to_probe: Affine = field(repr=False)
    reference: str = ""  # empty: the tracker's own space is the reference
    tools: Mapping[str, str] = field(default_factory=dict)  # name of a tool -> name of its transform
    size_px: tuple[int, ...] = ()  # (x, y) of the pictures that `to_probe` is for; empty: any

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Size of a pixel along x and y, as the calibration has it."""
        x_mm, y_mm = np.linalg.norm(self.to_probe[:3, :2], axis=0).tolist()
        return x_mm, y_mm

    @property
    def names(self) -> tuple[str, ...]:
        """All transforms that are looked at."""
        return (self.probe, *filter(None, [self.reference]), *self.tools.values())


@dataclass(frozen=True, eq=False)
class Matched:
    """An image (whatever was given), where it was, and how much longer than at its best it took to come."""

    image: Any
    tracking: Tracking | None  # None: nothing is tracked
    affine: Affine | None  # pixel index to LPS mm of the reference
    late_ns: int


@dataclass(frozen=True, eq=False)
class _Waiting:
    image: Any
    stamp_ns: int
    received_ns: int
    fault: str
    place: Place | None


class MatchPoses:
    """One source of images and poses. Without a chain images pass with the place that they bring."""

    def __init__(self, chain: Chain | None, limits: Limits) -> None:
        self._chain, self._limits = chain, limits
        self._tracks = {name: Track(name) for name in (chain.names if chain else ())}
        self._images, self._poses = Clock(limits.max_skew_ns), Clock(limits.max_skew_ns)
        self._last_stamp_ns = 0
        self._newest = (0, 0)  # time stamp and receipt of the newest pose
        self._waiting: deque[_Waiting] = deque()
        self._given_up: set[str] = set()  # waited for in vain, and nothing has come since: not waited for again
        self.n_invalid_poses = 0

    def pose(self, name: str, matrix: Affine, stamp_ns: int, received_ns: int, fault: str = "") -> None:
        """Take a transform as on the wire; those of other names are not looked at."""
        track = self._tracks.get(name)
        if track is None:
            return
        self._given_up.discard(name)
        trouble = self._poses.add(stamp_ns, received_ns)
        if stamp_ns <= 0:
            self.n_invalid_poses += 1
            return track.refuse("its poses have no time stamps")
        if not trouble and stamp_ns < (track.newest_ns or 0):
            trouble = "time stamps went back"
            self._poses.restart(stamp_ns, received_ns)
        if trouble:
            self._forget()
        self._newest = (stamp_ns, received_ns)
        fault = fault or pose_fault(matrix)
        self.n_invalid_poses += bool(fault)
        track.add(stamp_ns, None if fault else matrix, fault)

    def image(self, image: Any, stamp_ns: int, received_ns: int, place: Place | None = None, fault: str = "") -> None:
        """Take an image; `take` gives it back. `place` is its own, where it brings one; `fault` why it gets none."""
        trouble = self._images.add(stamp_ns, received_ns)
        if not trouble and stamp_ns <= self._last_stamp_ns:
            trouble = f"time stamps went back by {(self._last_stamp_ns - stamp_ns) / 1e6:.0f} ms"
            self._images.restart(stamp_ns, received_ns)
            self._forget()
        self._last_stamp_ns = stamp_ns
        self._waiting.append(_Waiting(image, stamp_ns, received_ns, trouble or fault, place))

    def _forget(self) -> None:
        for track in self._tracks.values():
            track.clear()

    def take(self, now_ns: int, *, at_once: bool = False) -> list[Matched]:
        """Return the images, in their order, that have their pose or will not get one."""
        out = []
        while self._waiting:
            first = self._waiting[0]
            must = at_once or now_ns >= first.received_ns + self._limits.wait_ns or len(self._waiting) > MOST_WAITING
            matched = self._match(first, must)
            if matched is None:
                break
            self._waiting.popleft()
            out.append(matched)
        return out

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until `take` has something to give in any case; None where nothing waits."""
        if not self._waiting:
            return None
        return max(0, self._waiting[0].received_ns + self._limits.wait_ns - now_ns)

    @property
    def skew_ns(self) -> int:
        """How much later images arrive than poses, by their time stamps; 0 where one of them is not known."""
        images_ns, poses_ns = self._images.offset_ns, self._poses.offset_ns
        return 0 if images_ns is None or poses_ns is None else images_ns - poses_ns

    @property
    def n_jumps(self) -> int:
        """How often a clock has jumped."""
        return self._images.n_jumps + self._poses.n_jumps

    def _match(self, image: _Waiting, must: bool) -> Matched | None:
        """None: wait for the pose after it."""
        late_ns = self._images.late_ns(image.stamp_ns, image.received_ns)
        chain = self._chain
        if chain is None:
            return Matched(image.image, *(image.place or (None, None)), late_ns)
        reason = image.fault or self._skew(image)
        if reason:
            return Matched(image.image, Tracking(None, reason), None, late_ns)
        found = {name: track.at(image.stamp_ns, self._limits.max_gap_ns) for name, track in self._tracks.items()}
        awaited = {name for name, each in found.items() if each.later}
        if awaited - self._given_up and not must:
            return None
        self._given_up |= awaited
        return Matched(image.image, *_compose(chain, found), late_ns)

    def _skew(self, image: _Waiting) -> str:
        """Why the times of this image and of the newest pose cannot be compared."""
        limit_ns = self._limits.max_skew_ns
        if abs(self.skew_ns) > limit_ns:
            return (
                f"by their time stamps images arrive {abs(self.skew_ns) / 1e6:.0f} ms "
                f"{'later' if self.skew_ns > 0 else 'sooner'} than poses, {_limit(limit_ns)}; let one clock time both"
            )
        image_ns, pose_ns = self._images.late_ns(image.stamp_ns, image.received_ns), self._poses.late_ns(*self._newest)
        what, late_ns = ("image", image_ns) if image_ns > pose_ns else ("newest pose", pose_ns)
        if late_ns <= limit_ns:
            return ""
        return f"the {what} came {late_ns / 1e6:.0f} ms later than usual, {_limit(limit_ns)}: its time may be wrong"


def _limit(limit_ns: int) -> str:
    return f"the limit is {limit_ns / 1e6:.0f} ms"


def _compose(chain: Chain, found: Mapping[str, Found]) -> Place:
    base, probe = found.get(chain.reference, Found(np.eye(4))), found[chain.probe]
    if base.matrix is None or probe.matrix is None:
        return Tracking(None, probe.reason or base.reason), None
    to_reference = np.linalg.inv(base.matrix)  # not its transpose: poses of six digits differ there by 0.2 µm a mm
    tools = {name: found[pose].matrix for name, pose in chain.tools.items()}
    seen = {name: to_lps(to_reference @ matrix) for name, matrix in tools.items() if matrix is not None}
    affine = image_in_lps(to_reference @ probe.matrix @ chain.to_probe)
    return Tracking(split(affine)[0], tools=seen), affine
