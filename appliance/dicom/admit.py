# SPDX-License-Identifier: Apache-2.0
"""Looks at what was received, after it was acknowledged, and decides what is owed; runs in the deliverer process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping

from appliance.buffer import Buffer, ObjectError
from appliance.buffer.descriptions import Described, Undescribed, keep, undescribed
from appliance.dicom.build_results import Alarm
from appliance.dicom.describe import LONGEST_PREFIX, describe
from appliance.dicom.follow_series import FollowSeries
from appliance.dicom.part10 import dataset_of
from appliance.dicom.routing import route
from appliance.errors import StorageError
from appliance.settings import Route

_AT_ONCE = 200  # instances of one transaction
_IDLE_S = 0.1

log = logging.getLogger(__name__)


def admit_next(buffer: Buffer, rules: Mapping[str, Route], alarm: Alarm, now: float) -> int:
    """Describe and route what waits; gives how many. Raises StorageError."""
    waiting = undescribed(buffer, _AT_ONCE)
    if waiting:
        n_reopened = keep(buffer, [_look_at(buffer, one, rules, alarm) for one in waiting], now)
        if n_reopened:
            text = f"receive: {n_reopened} series were complete and got more instances; they are open again"
            alarm("late instances", f"{text} and are done again; look at how their sender ends a series")
    return len(waiting)


def _look_at(buffer: Buffer, one: Undescribed, rules: Mapping[str, Route], alarm: Alarm) -> Described:
    try:
        dataset = dataset_of(buffer.segments.peek(one.place, LONGEST_PREFIX))
        attributes, problem = describe(dataset, one.transfer_syntax_uid)
    except ObjectError as error:
        attributes, problem = {}, str(error)
    if problem:
        log.warning("instance %d cannot be read: %s; it is kept, and routed by what could be", one.instance_id, problem)
        alarm("unreadable", f"receive: instance {one.instance_id} cannot be read ({problem}); look at its sender")
    routed = route(rules, attributes, one.peer)
    return Described(one, attributes, routed.destinations, routed.priority, routed.rules)


def admit(
    buffer: Buffer, rules: Mapping[str, Route], follow: FollowSeries, stop: threading.Event, alarm: Alarm
) -> None:
    """Describe, route and follow series until `stop`; while the buffer cannot be written, wait."""
    while not stop.is_set():
        try:
            worked = admit_next(buffer, rules, alarm, time.time())
            if not worked and follow.step(time.time()):
                alarm("late instances", "")
            alarm("buffer routing", "")
        except StorageError as error:
            alarm("buffer routing", str(error))
            worked = 0
        if not worked:
            stop.wait(_IDLE_S)
