# SPDX-License-Identifier: Apache-2.0
"""The volume of one scan as it grows: what went in, what did not and why, and each state of it as a message."""

from __future__ import annotations

from appliance.frames import Frame, Mark, Scan
from appliance.imaging.assembled import Assembler
from appliance.imaging.volume_message import Volume

_MOST_MARKS = 20


class VolumeOfScan:
    """For one thread. `stage` stands in the marks that say what is left out."""

    def __init__(self, scan: Scan, pipeline: str, assembler: Assembler, stage: str) -> None:
        self.scan_id = scan.scan_id
        self._scan, self._pipeline, self._assembler, self._stage = scan, pipeline, assembler, stage
        self._newest: Frame | None = None
        self._marks: dict[Mark, None] = {}
        self._left_out: dict[str, int] = {}
        self._version = 0
        self.changed = self.complete = False
        self.n_frames = 0

    @property
    def n_left_out(self) -> int:
        """Frames that are not in it."""
        return sum(self._left_out.values())

    def add(self, frame: Frame) -> None:
        """Put a frame in, or count why it is not."""
        reason = self._assembler.add(frame)
        self.changed = True  # a frame that is left out is told, too
        if reason:
            return self.leave_out(reason)
        self.n_frames += 1
        self._newest = frame
        if len(self._marks) < _MOST_MARKS:
            self._marks |= dict.fromkeys(frame.marks)

    def leave_out(self, reason: str, n_frames: int = 1) -> None:
        """Count frames that do not go in; one reason more than can be kept is told as another."""
        reason = reason if reason in self._left_out or len(self._left_out) < _MOST_MARKS else "other reasons"
        self._left_out[reason] = self._left_out.get(reason, 0) + n_frames

    def end(self) -> None:
        """No frame follows."""
        self.changed = self.complete = True

    def volume(self) -> Volume | None:
        """Return its state now; None while nothing is in it."""
        self.changed = False
        state = self._assembler.assembled(complete=self.complete)
        if state is None or self._newest is None:
            return None
        self._version += 1
        told = [f"{n} frames are left out: {reason}" for reason, n in self._left_out.items()]
        return Volume(
            pipeline=self._pipeline,
            scan_id=self._scan.scan_id,
            modality=self._scan.modality,
            array=state.array,
            affine=state.affine,
            value_range=state.value_range,
            acquired_ns=self._newest.acquired_ns,
            received_ns=self._newest.received_ns,
            version=self._version,
            complete=self.complete,
            slope=state.slope,
            intercept=state.intercept,
            filled=state.filled,
            marks=(*self._marks, *(Mark(self._stage, text) for text in (*state.remarks, *told))),
        )
