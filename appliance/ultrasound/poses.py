# SPDX-License-Identifier: Apache-2.0
"""Where a tracked thing was at a given time, and how far the clock of whoever says so is from ours.

Rigid transforms are (4, 4) float64, mm; times are integers in ns. Between two poses the rotation goes the short way
round at constant speed (slerp) and the translation straight. Nothing is ever extrapolated.
Reference: Shoemake 1985, doi:10.1145/325334.325242.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Affine

Quaternion = NDArray[np.float64]  # (w, x, y, z), of length 1

_ROUNDING = 1e-3  # of a quaternion's squared length
MOST_POSES = 512  # kept of one tool: five seconds at 100 Hz
_BUCKET_NS, _MOST_BUCKETS = 500_000_000, 20
_SHARE = 0.25  # of the buckets that may be wrong, early or late, without moving the estimate
JUMP_NS = 1_000_000_000
# Beyond what a hand does with a probe (0.5 m/s, 5 rad/s), plus what noise adds: a tracker that took one marker for
# another, or saw a planar one from its other side.
_FASTEST_MM_S, _FASTEST_RAD_S, _NOISE_MM, _NOISE_RAD = 2000.0, 20.0, 2.0, 0.05


def to_quaternion(rotation: NDArray[np.float64]) -> Quaternion:
    """Return the quaternion of a (3, 3) rotation matrix, of either sign.

    References
    ----------
    Bar-Itzhack 2000, doi:10.2514/2.4654: the eigenvector that fits best, also where rounding bent the matrix.
    """
    (a, b, c), (d, e, f), (g, h, i) = rotation
    k = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.asarray(np.linalg.eigh(k / 3)[1][:, -1])


def to_rotation(quaternion: Quaternion) -> NDArray[np.float64]:
    """Return the (3, 3) rotation matrix of a quaternion of length 1."""
    w, (x, y, z) = quaternion[0], quaternion[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + 2 * w * cross + 2 * cross @ cross)


def from_quaternion(quaternion: Quaternion, place_mm: NDArray[np.float64]) -> Affine:
    """Return the pose of a quaternion as it came, and a position; one that is far from length 1 gives no rotation."""
    pose, square = np.eye(4), float(quaternion @ quaternion)
    pose[:3, :3] = to_rotation(quaternion / np.sqrt(square)) if abs(square - 1) < _ROUNDING else np.nan
    pose[:3, 3] = place_mm
    return pose


def interpolate(before: Affine, after: Affine, share: float) -> Affine:
    """Return the rigid transform `share` (0 to 1) of the way from `before` to `after`.

    At 0 and 1 the given matrix itself, so that a pose measured at that very time comes out as it came in.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"interpolate: share {share!r} is outside 0 to 1; nothing is extrapolated")
    if share in (0, 1):
        return after if share else before
    p, q = to_quaternion(before[:3, :3]), to_quaternion(after[:3, :3])
    q = q if p @ q >= 0 else -q
    angle = 2 * np.arctan2(np.linalg.norm(q - p), np.linalg.norm(q + p))
    if angle > 1e-9:
        p = (np.sin((1 - share) * angle) * p + np.sin(share * angle) * q) / np.sin(angle)
    pose = np.eye(4)
    pose[:3, :3] = to_rotation(p / np.linalg.norm(p))
    pose[:3, 3] = (1 - share) * before[:3, 3] + share * after[:3, 3]
    return pose


@dataclass(frozen=True, eq=False)
class Found:
    """A pose, or why there is none. `later` means that it may come yet."""

    matrix: Affine | None = None
    reason: str = ""
    later: bool = False


class Track:
    """The poses of one tool, in the order of their times. A pose that is not valid is kept as such, with its reason:
    nobody may interpolate across it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._refused = ""
        self._times: list[int] = []
        self._poses: list[tuple[Affine | None, str]] = []

    @property
    def newest_ns(self) -> int | None:
        """Time of the newest pose."""
        return self._times[-1] if self._times else None

    def add(self, time_ns: int, matrix: Affine | None, reason: str = "") -> bool:
        """Append a pose; False where it is not newer than the last one, and so not taken."""
        if self._times and time_ns <= self._times[-1]:
            return False
        self._times.append(time_ns)
        self._poses.append((matrix, reason))
        if len(self._times) >= 2 * MOST_POSES:  # in one go: the front of a list is slow to cut
            del self._times[:MOST_POSES], self._poses[:MOST_POSES]
        return True

    def refuse(self, reason: str) -> None:
        """Note why the poses that come are not taken; told while there is none."""
        self._refused = reason

    def clear(self) -> None:
        """Forget all poses: the clock that timed them is another now."""
        self._times.clear()
        self._poses.clear()

    def at(self, time_ns: int, max_gap_ns: int) -> Found:
        """Return the pose at `time_ns`, from the one before and the one after, at most `max_gap_ns` apart."""
        index = bisect_left(self._times, time_ns)
        if index == len(self._times):
            return self._after_all(time_ns)
        matrix, reason = self._poses[index]
        exact = self._times[index] == time_ns
        before, why, gap_ns = self._before(index)
        if matrix is None or (before is None and not exact):
            return Found(reason=f"{self.name}: {reason or why}")
        if gap_ns > max_gap_ns and not exact:
            return Found(reason=f"{self.name}: {_ms(gap_ns)} without a pose, the limit is {_ms(max_gap_ns)}")
        if before is not None and _too_fast(before, matrix, gap_ns):
            return Found(reason=f"{self.name}: it moved faster than a hand does; look for a marker that is mistaken")
        if exact or before is None:
            return Found(matrix)
        return Found(interpolate(before, matrix, 1 - (self._times[index] - time_ns) / gap_ns))

    def _before(self, index: int) -> tuple[Affine | None, str, int]:
        """The pose before the one at `index`, why there is none, and how long before."""
        if index == 0:
            return None, "no pose before the image", 0
        return *self._poses[index - 1], self._times[index] - self._times[index - 1]

    def _after_all(self, time_ns: int) -> Found:
        if not self._times:
            return Found(reason=f"{self.name}: {self._refused or 'no pose has come'}", later=not self._refused)
        since = _ms(time_ns - self._times[-1])
        return Found(reason=f"{self.name}: no pose since {since} before the image", later=True)


class Clock:
    """How late the messages of one source are received, by their own time stamps.

    The difference between receipt (our clock) and time stamp (theirs) is the offset of the clocks and the way of the
    message, which is never shorter than at its best. So the offset is taken from the smallest difference in each half
    second of the last ten; of these the lower quartile, so that single wrong stamps do not move it.
    A message that is late by over a second, or earlier than one can be by over `early_ns`, is a jump: of their clock,
    or of the way. All begins anew then.
    """

    def __init__(self, early_ns: int = JUMP_NS) -> None:
        self._early_ns = early_ns
        self._smallest: deque[list[int]] = deque(maxlen=_MOST_BUCKETS)  # [bucket, difference]
        self.n_jumps = 0

    @property
    def offset_ns(self) -> int | None:
        """Our clock less theirs, and the shortest way; None before the first message."""
        ranked = sorted(difference for _, difference in self._smallest)
        return ranked[int(_SHARE * (len(ranked) - 1))] if ranked else None

    def add(self, stamp_ns: int, received_ns: int) -> str:
        """Take a message into account; return what is wrong with its stamp, or an empty text."""
        if stamp_ns <= 0:
            return "no time stamp"
        difference, offset_ns, jump = received_ns - stamp_ns, self.offset_ns, ""
        if offset_ns is not None and not -self._early_ns <= difference - offset_ns <= JUMP_NS:
            self._smallest.clear()
            self.n_jumps += 1
            jump = f"time stamps jumped by {(offset_ns - difference) / 1e9:+.1f} s"
        bucket = received_ns // _BUCKET_NS
        if self._smallest and self._smallest[-1][0] == bucket:
            self._smallest[-1][1] = min(self._smallest[-1][1], difference)
        else:
            self._smallest.append([bucket, difference])
        return jump

    def restart(self, stamp_ns: int, received_ns: int) -> None:
        """Begin anew with this message: its sender's clock was set."""
        self._smallest.clear()
        self.n_jumps += 1
        self.add(stamp_ns, received_ns)

    def late_ns(self, stamp_ns: int, received_ns: int) -> int:
        """How much longer than at its best a message took, 0 where nothing is known."""
        offset_ns = self.offset_ns
        return 0 if stamp_ns <= 0 or offset_ns is None else max(0, received_ns - stamp_ns - offset_ns)


def _too_fast(before: Affine, after: Affine, gap_ns: int) -> bool:
    gap_s = gap_ns / 1e9
    cosine = (np.einsum("ij,ij", before[:3, :3], after[:3, :3]) - 1) / 2  # of the angle between them
    turned = float(np.arccos(np.clip(cosine, -1, 1)))
    moved = float(np.linalg.norm(after[:3, 3] - before[:3, 3]))
    return moved > _FASTEST_MM_S * gap_s + _NOISE_MM or turned > _FASTEST_RAD_S * gap_s + _NOISE_RAD


def _ms(time_ns: int) -> str:
    return f"{time_ns / 1e6:.0f} ms" if time_ns < 1e9 else f"{time_ns // 10**9} s"  # not another text with each image
