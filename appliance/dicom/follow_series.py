# SPDX-License-Identifier: Apache-2.0
"""Follows the open series until each is complete; runs in the deliverer process, in the thread that describes."""

from __future__ import annotations

import logging
from collections.abc import Callable

from appliance.buffer import Buffer, series
from appliance.buffer.descriptions import undescribed
from appliance.dicom.series import Came, Image, Report, completion, n_expected

ReportOf = Callable[[str], Report | None]  # by Series Instance UID: what MPPS says of it

log = logging.getLogger(__name__)


def _no_report(series_instance_uid: str) -> Report | None:
    del series_instance_uid
    return None


class FollowSeries:
    """Call `step` while nothing waits to be described."""

    def __init__(self, buffer: Buffer, silence_s: float, report_of: ReportOf = _no_report) -> None:
        self._buffer, self._silence_s, self._report_of = buffer, silence_s, report_of
        self._images: dict[str, tuple[int, list[Image]]] = {}  # of open series: the last id, and what is known
        self._first_look: dict[str, tuple[int, float]] = {}  # at the newest instance: the last id, and when

    def step(self, now: float) -> int:
        """Complete what is complete; gives how many. Raises StorageError."""
        opened = series.open_series(self._buffer.database)
        for memory in (self._images, self._first_look):
            for uid in memory.keys() - {one.series_instance_uid for one in opened}:
                del memory[uid]
        return sum(self._look_at(one, now) for one in opened)

    def _look_at(self, one: series.Series, now: float) -> bool:
        database, uid = self._buffer.database, one.series_instance_uid
        came = [Came(*each) for each in series.came_by(database, uid)]
        images = self._images_of(one)
        report = self._report_of(uid)
        reason = completion(images, came, report, self._silent_s(one, now), self._silence_s)
        # An association's end is recorded after all it brought: whatever that was is described by now, or found here.
        if not reason or undescribed(self._buffer, 1):
            return False
        if not series.complete(database, one, reason, n_expected(images, report), now):
            return False
        log.info("series of instance %d is complete: %s", one.first_instance_id, reason)
        return True

    def _images_of(self, one: series.Series) -> list[Image]:
        last, images = self._images.get(one.series_instance_uid, (0, []))
        if last != one.last_instance_id:
            for member in series.members(self._buffer.database, one.series_instance_uid, last):
                images.append(Image(member.sop_class_uid, member.sop_instance_uid, member.attributes))
            self._images[one.series_instance_uid] = (one.last_instance_id, images)
        return images

    def _silent_s(self, one: series.Series, now: float) -> float:
        """How long nothing came. An instance from the future means that the clock was set back."""
        last, looked = self._first_look.get(one.series_instance_uid, (0, now))
        if last != one.last_instance_id:
            looked = now
            self._first_look[one.series_instance_uid] = (one.last_instance_id, now)
        return now - min(one.last_s, looked)
