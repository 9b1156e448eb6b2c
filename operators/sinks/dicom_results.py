# SPDX-License-Identifier: Apache-2.0
"""Keeps every image for PACS: durably, in order, as reconstructed and as denoised series.

In:  (y, x) float or integer, host; Scan of modality MR
Out: one job of the buffer for each frame; the deliverer builds and sends the DICOM objects

Class: durable. Nothing is dropped: while the buffer refuses, the images wait and the source stops reading.
"""

from __future__ import annotations

import queue
import threading
import time
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import Field

from appliance.buffer import Buffer, NewJob
from appliance.context import Context
from appliance.dicom.spool import Levels, Spooled, images_to_keep, pack
from appliance.errors import ScanError, StorageError
from appliance.frames import End, Frame, Scan
from operators import OperatorSettings

_QUEUE_FRAMES = 64  # about two seconds of a fast cine; then the source waits
_BATCH_FRAMES = 16  # frames that share one commit
_RETRY_S = 1.0
_FLUSH_S = 10.0


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
        self._settings, self._alarm, self._buffer = settings, context.alarm, buffer
        self._queue: queue.SimpleQueue[NewJob | End | None] = queue.SimpleQueue()
        self._scans: dict[str, tuple[Scan, Levels]] = {}
        self._spooled = self._bytes = self._n_in = self._n_out = 0  # each is written by one thread
        self._last_error = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write_all, name="dicom_results", daemon=True)
        self._thread.start()

    def begin(self, scan: Scan) -> None:
        if scan.modality != "MR" or scan.axes != ("y", "x"):
            raise ScanError(
                f"dicom_results: takes MR images ('y', 'x'), got {scan.modality} {scan.axes!r}; "
                "put reconstruct before it, or leave this sink out",
                scan.scan_id,
            )
        self._scans[scan.scan_id] = (scan, Levels())

    def frame(self, frame: Frame) -> None:
        if frame.scan_id not in self._scans:
            return  # `begin` refused this scan, with an alarm
        scan, levels = self._scans[frame.scan_id]
        images = images_to_keep(frame, self._settings.series)
        shown = levels.of(next(iter(images.values())), frame.position.slice)
        now_ns = frame.acquired_ns if scan.attributes.get("repeatable") else time.time_ns()  # the same object again
        spooled = Spooled(scan, frame, images, *shown, self._settings.to, now_ns)
        self._put(pack(spooled, self._settings.priority))

    def end(self, end: End) -> None:
        self._scans.pop(end.scan_id, None)
        self._put(end)

    def _put(self, item: NewJob | End) -> None:
        self._n_in += 1
        self._queue.put(item)

    @property
    def _pending(self) -> int:
        return self._n_in - self._n_out

    def backlog(self) -> float:
        """Fill of the queue: at 1 the source stops reading, at 0 all is on disk."""
        return self._pending / _QUEUE_FRAMES

    def status(self) -> dict[str, Any]:
        pending, error = self._pending, self._last_error
        return {"spooled": self._spooled, "pending": pending, "bytes": self._bytes, "last_error": error}

    def close(self) -> None:
        """Flush within ten seconds; what is left then is reported."""
        self._queue.put(None)
        self._thread.join(_FLUSH_S)
        self._closing.set()
        if self._thread.is_alive() or self._pending:
            reason = self._last_error or "the disk is too slow"
            self._alarm("dicom_results", f"dicom_results: {self._pending} results were not kept: {reason}")
        else:
            self._buffer.close()

    def _write_all(self) -> None:
        running = True
        while running and not self._closing.is_set():
            items = [self._queue.get()]
            while self._queue.qsize() and len(items) < _BATCH_FRAMES:
                items.append(self._queue.get())
            running = None not in items
            self._keep([item for item in items if item is not None])

    def _keep(self, items: list[NewJob | End]) -> None:
        """Keep all of `items`, and wait for the disk as long as it takes."""
        jobs, ends = [one for one in items if isinstance(one, NewJob)], [one for one in items if isinstance(one, End)]
        while jobs or ends:
            try:
                self._write(jobs, ends)
                self._alarm("dicom_results", "")
            except StorageError as error:
                self._last_error = str(error)
                self._alarm("dicom_results", f"{error}; images wait and the source stops reading")
                if self._closing.wait(_RETRY_S):
                    return

    def _write(self, jobs: list[NewJob], ends: list[End]) -> None:
        now = time.time()
        if jobs:
            self._buffer.put_jobs(jobs, now)
            self._spooled += len(jobs)
            self._bytes += sum(len(job.payload) for job in jobs)
            self._n_out += len(jobs)
            jobs.clear()
        for end in list(ends):
            self._buffer.record("scan end", end.scan_id, f"{end.status}, {end.n_frames} frames: {end.reason}", now)
            ends.remove(end)
            self._n_out += 1


def make(settings: Settings, context: Context) -> DicomResults:
    """Open the buffer. Raises ValueError on an unknown destination, StorageError without a usable buffer."""
    for name in settings.to:
        if name not in context.destinations:
            close = get_close_matches(name, context.destinations, 1)
            known = f"did you mean {close[0]!r}" if close else f"known: {', '.join(context.destinations) or 'none'}"
            raise ValueError(f"dicom_results.to: unknown destination {name!r}; {known}")
    return DicomResults(settings, context, Buffer(context.data_dir, context.reserve_bytes))
