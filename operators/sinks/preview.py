# SPDX-License-Identifier: Apache-2.0
"""Publish 8-bit previews, before, after and what was removed, on the live bus for the console; newest wins.

In:  (y, x) or (z, y, x) float32, host (of a volume, the middle slice is shown)
Out: live bus, topic "preview": JSON header, then height x width grey bytes; then as many of the original and
     of what was removed from it, if a stage changed it
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from pydantic import Field

from appliance.bus import Publisher
from appliance.context import Context
from appliance.faults.recent import RecentFindings
from appliance.frames import Array, End, Frame, Scan
from appliance.imaging.grey_window import SlowWindow, removed_grey, to_grey
from appliance.imaging.pace import Pace
from operators import OperatorSettings

_STATE_EVERY_S = 0.25  # how often "no scan is running" is repeated, for pages opened in between
_N_FOUND = 12  # findings that travel with each preview, so that a page's list and its image are of one moment


def preview_header(pipeline: str, frame: Frame, image: Array, window: tuple[float, float]) -> dict[str, Any]:
    """Return what a page has to know of the (y, x) image of `frame`."""
    found = [
        {"kind": f.kind, "message": f.message, "severity": f.severity, "where": {**f.where}} for f in frame.findings
    ]
    return {
        "pipeline": pipeline,
        "state": "live",
        "scan_id": frame.scan_id,
        "sequence": frame.sequence,
        "width": image.shape[1],
        "height": image.shape[0],
        "pixel_mm": np.linalg.norm(frame.affine[:3, :2], axis=0).round(4).tolist(),
        "acquired_ns": frame.acquired_ns,
        "received_ns": frame.received_ns,
        "age_ms": round((time.monotonic_ns() - frame.received_ns) / 1e6, 3),
        "window": list(window),
        "findings": found,
        "marks": [{"stage": mark.stage, "reason": mark.reason} for mark in frame.marks],
        "provenance": [applied.operator for applied in frame.provenance],
    }


class Settings(OperatorSettings):
    max_rate_hz: float = Field(30, ge=0.1, le=120, description="Most previews per second; frames in between are left.")


class Preview:
    """The sink. Everything but bookkeeping happens on its own thread."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._pace, self._pipeline = Pace(settings.max_rate_hz), context.pipeline
        self._publisher = Publisher(context.run_dir, f"pipeline-{context.pipeline}", "preview")
        self._slot: Frame | None = None
        self._lock = threading.Lock()
        self._changed, self._closing = threading.Event(), threading.Event()
        self._running: set[str] = set()
        self._state = {"state": "idle", "reason": ""}
        self._scan_id = ""
        self._window: SlowWindow | None = None
        self._n_published = self._n_left_out = 0
        self._recent = RecentFindings()
        self._thread = threading.Thread(target=self._run, name="preview", daemon=True)
        self._thread.start()

    def begin(self, scan: Scan) -> None:
        self._running.add(scan.scan_id)

    def frame(self, frame: Frame) -> None:
        self._recent.add(frame)  # also what no preview will show
        with self._lock:
            self._n_left_out += self._slot is not None
            self._slot = frame
        self._changed.set()

    def end(self, end: End) -> None:
        self._running.discard(end.scan_id)
        self._state = {"state": "ended", "reason": f"{end.status}{', ' + end.reason if end.reason else ''}"}
        self._changed.set()

    def close(self) -> None:
        """Stop publishing."""
        self._closing.set()
        self._changed.set()
        self._thread.join(2)

    def status(self) -> dict[str, Any]:
        found = self._recent.newest()
        return {"published": self._n_published, "left_out": self._n_left_out, "recent_findings": found}

    def _run(self) -> None:
        wait_s = _STATE_EVERY_S
        while not self._closing.is_set():
            has_just_come = self._changed.wait(wait_s)
            self._changed.clear()
            now_s, wait_s = time.monotonic(), _STATE_EVERY_S
            if self._slot is not None and not self._pace.may_show(now_s, has_just_come):
                wait_s = self._pace.due_s - now_s
                continue
            with self._lock:
                frame, self._slot = self._slot, None
            if frame is not None:
                self._pace.shown(now_s)
                self._publish(frame)
            elif not self._running:
                found = self._recent.newest(_N_FOUND)
                self._publisher.publish({"pipeline": self._pipeline, **self._state, "recent_findings": found})
        self._publisher.close()

    def _publish(self, frame: Frame) -> None:
        planes = [_plane(array) for array in (frame.array, frame.original) if array is not None]
        if planes[-1].shape != planes[0].shape:
            del planes[1]  # a stage changed the matrix: before and after do not lie over each other
        if self._window is None or frame.scan_id != self._scan_id:
            self._scan_id, self._window = frame.scan_id, SlowWindow(planes[0])
        window = self._window.follow(planes[0])
        header = {**preview_header(self._pipeline, frame, planes[0], window), "original": len(planes) == 2}
        header["recent_findings"] = self._recent.newest(_N_FOUND)
        grey = [to_grey(plane, window) for plane in planes]
        if len(planes) == 2:
            grey.append(removed_grey(planes[1], planes[0], window))
        self._publisher.publish(header, np.stack(grey))
        self._n_published += 1


def _plane(array: Array) -> Array:
    return array if array.ndim == 2 else array[len(array) // 2]


def make(settings: Settings, context: Context) -> Preview:
    """Open the bus. Raises ConfigError when its path is too long."""
    return Preview(settings, context)
