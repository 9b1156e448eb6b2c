# SPDX-License-Identifier: Apache-2.0
"""Turns spooled images into DICOM objects and what is owed, one transaction each; runs in the deliverer process."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable

from appliance.buffer import Buffer, Job
from appliance.dicom.mr_image import instances
from appliance.dicom.spool import KIND, unpack
from appliance.errors import NearscanError, StorageError

Alarm = Callable[[str, str], None]  # key, text; an empty text clears it

MAX_ATTEMPTS = 5
_RETRY_S = 2.0
_IDLE_S = 0.1

log = logging.getLogger(__name__)


def _told(error: BaseException) -> str:
    """Say what failed without the values: a library's text may quote a patient's name."""
    if isinstance(error, NearscanError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} in {where.name}, line {where.lineno}"


def build_next(buffer: Buffer, alarm: Alarm, now: float) -> bool:
    """Build the next job that is due. False: there was none. Raises StorageError when the buffer cannot be used."""
    job = buffer.next_job(KIND, now)
    if job is None:
        return False
    try:
        built = instances(unpack(job.meta, buffer.read_job(job)), job.priority)
    except Exception as error:  # noqa: BLE001 - the deliverer: records, schedules the retry; a result is never dropped
        _not_built(buffer, alarm, job, _told(error), now)
        return True
    kept = buffer.finish_job(job, built, now)
    if any(one.conflict for one in kept):
        alarm("dicom_results conflict", "dicom_results: a result's UID is here with other bytes; both kept, one held")
    return True


def _not_built(buffer: Buffer, alarm: Alarm, job: Job, reason: str, now: float) -> None:
    log.error("job %d cannot be built, attempt %d: %s", job.job_id, job.attempts + 1, reason)
    if job.attempts + 1 < MAX_ATTEMPTS:
        buffer.retry_job(job, now + _RETRY_S * 2**job.attempts, reason)
        return
    buffer.quarantine_job(job, reason, now)
    alarm(
        "dicom_results quarantine",
        f"dicom_results: job {job.job_id} cannot be built ({reason}); it is kept in quarantine, report it",
    )


def build_results(buffer: Buffer, stop: threading.Event, alarm: Alarm) -> None:
    """Build until `stop`; while the buffer cannot be written, wait."""
    settled = True
    while not stop.is_set():
        try:
            if not settled:
                buffer.release_jobs(KIND)
            settled, worked = True, build_next(buffer, alarm, time.time())
            alarm("buffer results", "")
        except StorageError as error:
            alarm("buffer results", str(error))
            settled = worked = False
        if not worked:
            stop.wait(_IDLE_S)
