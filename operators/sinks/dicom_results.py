# SPDX-License-Identifier: Apache-2.0
"""Keeps every image for PACS: durably, in order, as reconstructed and as denoised series.

In:  (y, x) float or integer, host; Scan of modality MR
Out: one job of the buffer for each frame; the deliverer builds and sends the DICOM objects

Class: durable. Nothing is dropped: while the buffer refuses, the images wait and the source stops reading.
"""

from __future__ import annotations

import time
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field

from appliance.buffer import Buffer
from appliance.context import Context
from appliance.dicom.keep_results import KeepResults
from appliance.dicom.spool import Levels, Spooled, images_to_keep, new_scan, pack
from appliance.errors import ScanError
from appliance.frames import End, Frame, Scan
from operators import OperatorSettings


class Settings(OperatorSettings):
    to: tuple[str, ...] = Field(min_length=1, description="Names of the destinations to deliver to.")
    series: tuple[Literal["reconstructed", "denoised"], ...] = Field(
        ("reconstructed", "denoised"),
        min_length=1,
        description="Series to keep. An image that could not be denoised is always kept as reconstructed, marked.",
    )
    priority: int = Field(5, ge=0, le=9, description="Larger goes first, before other results of this box.")


class DicomResults:
    """The sink. One writer thread makes durable what the graph's thread queued."""

    def __init__(self, settings: Settings, context: Context, buffer: Buffer) -> None:
        self._settings, self._pipeline = settings, context.pipeline
        self._keep = KeepResults(buffer, context.pipeline, context.alarm)
        self._scans: dict[str, tuple[Scan, Levels]] = {}

    def begin(self, scan: Scan) -> None:
        if scan.modality != "MR" or scan.axes != ("y", "x"):
            raise ScanError(
                f"dicom_results: takes MR images ('y', 'x'), got {scan.modality} {scan.axes!r}; "
                "put reconstruct before it, or leave this sink out",
                scan.scan_id,
            )
        self._scans[scan.scan_id] = (scan, Levels())
        self._keep.put(new_scan(scan, self._pipeline))

    def frame(self, frame: Frame) -> None:
        if frame.scan_id not in self._scans:
            return  # `begin` refused this scan, with an alarm
        scan, levels = self._scans[frame.scan_id]
        images = images_to_keep(frame, self._settings.series)
        shown = levels.of(next(iter(images.values())), frame.position.slice)
        now_ns = frame.acquired_ns if scan.attributes.get("repeatable") else time.time_ns()  # the same object again
        spooled = Spooled(scan, frame, images, *shown, self._settings.to, now_ns)
        self._keep.put(pack(spooled, self._settings.priority))

    def end(self, end: End) -> None:
        self._scans.pop(end.scan_id, None)
        self._keep.put(end)

    def backlog(self) -> float:
        """Fill of the queue: at 1 the source stops reading, at 0 all is on disk."""
        return self._keep.fill()

    def status(self) -> dict[str, Any]:
        keep = self._keep
        pending, error = keep.n_pending, keep.last_error
        return {"spooled": keep.n_jobs, "pending": pending, "bytes": keep.n_bytes, "last_error": error}

    def close(self) -> None:
        """Flush within ten seconds; what is left then is reported."""
        self._keep.close()


def make(settings: Settings, context: Context) -> DicomResults:
    """Open the buffer. Raises ValueError on an unknown destination, StorageError without a usable buffer."""
    for name in settings.to:
        if name not in context.destinations:
            close = get_close_matches(name, context.destinations, 1)
            known = f"did you mean {close[0]!r}" if close else f"known: {', '.join(context.destinations) or 'none'}"
            raise ValueError(f"dicom_results.to: unknown destination {name!r}; {known}")
    return DicomResults(settings, context, Buffer(context.data_dir, context.reserve_bytes))
