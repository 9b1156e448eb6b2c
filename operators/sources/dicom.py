# SPDX-License-Identifier: Apache-2.0
"""Received DICOM series (MR, CT, US), each as one scan: images as they arrive, End when the series is complete.

In:  the inbox of the buffer: instances that the DICOM listener received and the deliverer described
Out: (y, x) float32, host: grey images in the order of arrival, rescaled (PS3.3 C.11.1), affine in LPS mm

Reference: PS3.3 C.7.6.2.1.1. Whole series in a durable order: after a crash, a scan that was running is done again from
its beginning with the same identifiers; a series that grows after its end is done again as a new scan.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from pydantic import Field

from appliance.buffer import Buffer, progress
from appliance.buffer.series import Series, changed_since, members, one_series
from appliance.context import Context
from appliance.dicom.image_decoder import ImageDecoder
from appliance.dicom.inbox_scan import MODALITIES, InboxScan
from appliance.dicom.routing import fulfils
from appliance.errors import StorageError
from appliance.settings import Condition
from operators import Emit, OperatorSettings

_POLL_S = 0.1
_RETRY_S = 1.0
_CHILD_BYTES = 1 << 30  # of memory for an interpreter with its libraries; and twice a file and its frame


class Settings(OperatorSettings):
    select: dict[str, Condition] = Field(
        default_factory=dict,
        description="Which series, by their first instance: conditions as in `routes`. None: every MR, CT and US.",
        examples=[{"Modality": "CT"}],
    )
    max_instance_mb: int = Field(
        1024, ge=1, le=65_536, description="Largest instance taken, in MiB; three times as much may be used to decode."
    )
    decode_timeout_s: float = Field(
        30.0, ge=1, le=600, description="Longest time for one image; then it is left out, in seconds."
    )


class DicomSource:
    """See `operators.Source`. Takes what came since this pipeline ran first."""

    def __init__(self, settings: Settings, context: Context, buffer: Buffer) -> None:
        self._settings, self._context, self._buffer = settings, context, buffer
        longest = settings.max_instance_mb << 20
        self._decoder = ImageDecoder(_CHILD_BYTES + 2 * longest, settings.decode_timeout_s)
        self._running: dict[str, InboxScan] = {}
        self._stopping = threading.Event()
        self._mark: int | None = None  # every instance up to here was looked at
        self._counts = {"scans": 0, "scans_not_complete": 0, "instances_without_image": 0}
        self._last_reason = ""

    def run(self, emit: Emit) -> None:
        """Follow the inbox until stopped; while the buffer cannot be used, wait."""
        while not self._stopping.is_set():
            try:
                worked, wait_s = self._step(emit), _POLL_S
                self._context.alarm("dicom source", "")
            except StorageError as error:
                worked, wait_s = False, _RETRY_S
                self._context.alarm("dicom source", str(error))
            if not worked:
                self._stopping.wait(wait_s)
        for scan in self._running.values():
            scan.abort(emit, "the pipeline stops; the scan is done again from its beginning when it runs again")
        self._decoder.close()
        self._buffer.close()

    def stop(self) -> None:
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """Counts of this run; `sessions` are series that are being done."""
        return {"sessions": len(self._running), **self._counts, "last_reason": self._last_reason}

    def _step(self, emit: Emit) -> bool:
        database, pipeline = self._buffer.database, self._context.pipeline
        if self._mark is None:
            self._mark = progress.began_at(database, pipeline, time.time())
        for series in changed_since(database, self._mark):
            if series.series_instance_uid not in self._running:
                self._consider(series)
            self._mark = series.last_instance_id
        worked = [scan.advance(emit, self._stopping.is_set) for scan in list(self._running.values()) if not scan.ended]
        for scan in [one for one in self._running.values() if one.ended]:
            self._finish(scan)
        return any(worked)

    def _consider(self, series: Series) -> None:
        """Begin with a series that is wanted and that has something we have not done."""
        database, pipeline, uid = self._buffer.database, self._context.pipeline, series.series_instance_uid
        done = progress.progress_of(database, pipeline, uid)
        if done and not done.running and done.last_instance_id >= series.last_instance_id:
            return
        first = members(database, uid, limit=1)
        if not first or first[0].attributes.get("Modality") not in MODALITIES:
            return
        if fulfils(self._settings.select, first[0].attributes, first[0].peer):
            opening = progress.begin(database, pipeline, uid, time.time())
            longest = self._settings.max_instance_mb << 20
            self._running[uid] = InboxScan(series, opening, pipeline, self._buffer, self._decoder, longest)

    def _finish(self, scan: InboxScan) -> None:
        """Note that a scan is done, once every sink has all of it; until then a crash does it again."""
        if scan.began and not self._context.is_through(scan.scan_id):
            return
        database, uid = self._buffer.database, scan.series_instance_uid
        progress.finish(database, self._context.pipeline, uid, scan.last_instance_id, time.time())
        del self._running[uid]
        self._tell(scan)
        series = one_series(database, uid)
        if series and series.last_instance_id > scan.last_instance_id:
            self._consider(series)

    def _tell(self, scan: InboxScan) -> None:
        self._counts["scans"] += 1
        self._counts["scans_not_complete"] += scan.status != "complete"
        self._counts["instances_without_image"] += len(scan.lost)
        self._last_reason = scan.reason
        text = f"{len(scan.lost)} instances of scan {scan.scan_id} gave no image: {scan.lost[0]}" if scan.lost else ""
        self._context.alarm("dicom source images", text and f"dicom source: {text}; they are kept and delivered")


def make(settings: Settings, context: Context) -> DicomSource:
    """Open the buffer. Raises StorageError where it cannot be used."""
    return DicomSource(settings, context, Buffer(context.data_dir, context.reserve_bytes))
