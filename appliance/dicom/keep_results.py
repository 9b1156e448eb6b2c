# SPDX-License-Identifier: Apache-2.0
"""Makes durable, on a thread of its own, what the graph's thread hands over: images as jobs, and when scans ran.

Rule: nothing is dropped. While the buffer refuses, everything waits, and `fill` tells the source to stop reading.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from appliance.buffer import Buffer, NewJob, scans
from appliance.errors import StorageError
from appliance.frames import End

QUEUE_ITEMS = 64  # about two seconds of a fast cine; then the source waits
_BATCH_ITEMS = 16  # images that share one commit
_RETRY_S = 1.0
_FLUSH_S = 10.0

Item = NewJob | scans.NewScan | End
Alarm = Callable[[str, str], None]


class KeepResults:
    """The thread of one pipeline. `n_jobs` and `n_bytes` are kept; `last_error` is why it waited last."""

    def __init__(self, buffer: Buffer, pipeline: str, alarm: Alarm) -> None:
        self._buffer, self._pipeline, self._alarm = buffer, pipeline, alarm
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self.n_jobs = self.n_bytes = self._n_in = self._n_out = 0  # each is written by one thread
        self.last_error = ""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dicom_results", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Hand over; never waits."""
        self._n_in += 1
        self._queue.put(item)

    @property
    def n_pending(self) -> int:
        """What is not on disk yet."""
        return self._n_in - self._n_out

    def fill(self) -> float:
        """Of the queue: at 1 the source is to stop reading, at 0 all is on disk."""
        return self.n_pending / QUEUE_ITEMS

    def close(self) -> None:
        """Flush within ten seconds; what is left then is reported."""
        self._queue.put(None)
        self._thread.join(_FLUSH_S)
        self._closing.set()
        if self._thread.is_alive() or self.n_pending:
            reason = self.last_error or "the disk is too slow"
            self._alarm("dicom_results", f"dicom_results: {self.n_pending} results were not kept: {reason}")
        else:
            self._buffer.close()

    def _run(self) -> None:
        self._until_kept(lambda: scans.abandon(self._buffer.database, self._pipeline, time.time()))
        running = True
        while running and not self._closing.is_set():
            items = [self._queue.get()]
            while self._queue.qsize() and len(items) < _BATCH_ITEMS:
                items.append(self._queue.get())
            running = None not in items
            jobs = [item for item in items if isinstance(item, NewJob)]
            if jobs:
                self._until_kept(partial(self._keep_jobs, jobs))
            for item in items:
                if isinstance(item, scans.NewScan | End):
                    self._until_kept(partial(self._keep_scan, item))

    def _until_kept(self, keep: Callable[[], None]) -> None:
        """Do it, and wait for the disk as long as it takes."""
        while True:
            try:
                keep()
                self._alarm("dicom_results", "")
                return
            except StorageError as error:
                self.last_error = str(error)
                self._alarm("dicom_results", f"{error}; images wait and the source stops reading")
                if self._closing.wait(_RETRY_S):
                    return

    def _keep_jobs(self, jobs: list[NewJob]) -> None:
        self._buffer.put_jobs(jobs, time.time())
        self.n_jobs += len(jobs)
        self.n_bytes += sum(len(job.payload) for job in jobs)
        self._n_out += len(jobs)

    def _keep_scan(self, item: scans.NewScan | End) -> None:
        if isinstance(item, End):
            scans.end(self._buffer.database, item.scan_id, item.status, item.reason, item.n_frames, time.time())
        else:
            scans.begin(self._buffer.database, item)
        self._n_out += 1
