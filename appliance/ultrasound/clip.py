# SPDX-License-Identifier: Apache-2.0
"""Matched pictures as the messages of the graph: one clip is one scan.

Rule: no threads, no sockets.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from appliance.frames import IMAGE_AXES, Affine, End, Frame, Mark, Message, Scan, read_only
from appliance.ultrasound.grey_picture import grey_picture
from appliance.ultrasound.match_poses import Matched
from appliance.ultrasound.place_image import sizes_only, split


class Clip:
    """The clips of one source, one after the other.

    `acquired_ns` is the time of receipt less what the picture was held up on its way: on our clock, whatever the
    sender's says. `pixel_mm` is used where neither a pose nor a calibration says how large a pixel is.
    """

    def __init__(self, pipeline: str, source: str, pixel_mm: Sequence[float], max_late_ns: int) -> None:
        self._pipeline, self._source = pipeline, source
        self._pixel_mm, self._max_late_ns = pixel_mm, max_late_ns
        self._scan: Scan | None = None
        self._n_frames = 0
        self.n_scans = self.n_frames = self.n_without_place = 0
        self.last_reason = ""  # why the newest picture without a place has none

    @property
    def running(self) -> bool:
        """Whether a scan has begun and not ended."""
        return self._scan is not None

    def show(self, matched: Matched) -> list[Message]:
        """Return what the graph is told of a picture. Raises ValueError for one that is not taken."""
        pixels, remark = grey_picture(matched.image.array)
        out: list[Message] = []
        if self._scan is not None and self._scan.shape != pixels.shape:
            out += self.end("complete", f"the picture's size changed to {pixels.shape}")
        if self._scan is None:
            self._scan = self._begin(pixels.shape)
            out.append(self._scan)
        marks = list(self._marks(matched, remark))
        affine = self._unplaced(matched.image.affine) if matched.affine is None else matched.affine
        now_ns, received_ns = time.monotonic_ns(), matched.image.received_ns
        frame = Frame(
            scan_id=self._scan.scan_id,
            sequence=self._n_frames,
            array=read_only(pixels),
            axes=IMAGE_AXES,
            affine=affine,
            acquired_ns=time.time_ns() - (now_ns - received_ns) - matched.late_ns,
            received_ns=received_ns,
            marks=tuple(marks),
            tracking=matched.tracking,
        )
        self._n_frames += 1
        self.n_frames += 1
        return [*out, frame]

    def end(self, status: Literal["complete", "aborted"], reason: str) -> list[Message]:
        """Return the end of the scan that runs, if one does."""
        scan, self._scan = self._scan, None
        return [] if scan is None else [End(scan.scan_id, status, reason, self._n_frames)]

    def _begin(self, shape: tuple[int, ...]) -> Scan:
        self._n_frames = 0
        self.n_scans += 1
        scan_id = f"{self._pipeline.replace('_', '-')}-{time.time_ns() // 10**6}-{secrets.token_hex(3)}"
        return Scan(scan_id, "US", IMAGE_AXES, shape, "float32", time.time_ns(), self._source)

    def _marks(self, matched: Matched, remark: str) -> Any:
        if matched.tracking is not None and matched.affine is None:
            self.n_without_place += 1
            self.last_reason = matched.tracking.reason
            yield Mark("tracking", self.last_reason)
        if matched.late_ns > self._max_late_ns:
            yield Mark("openigtlink", f"it came {matched.late_ns / 1e6:.0f} ms later than usual")
        if remark:
            yield Mark("openigtlink", remark)

    def _unplaced(self, affine: Affine) -> Affine:
        """Sizes of a pixel only: no place in the room."""
        if self._pixel_mm:
            return sizes_only(np.diag([*self._pixel_mm, math.prod(self._pixel_mm) ** 0.5, 1.0]))
        try:
            return sizes_only(split(affine)[1])
        except ValueError:  # the image says nothing of its geometry
            return np.eye(4)
