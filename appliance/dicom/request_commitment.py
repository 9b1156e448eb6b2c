# SPDX-License-Identifier: Apache-2.0
"""Asks a destination whether it keeps what it said it stored: storage commitment (PS3.4 annex J, as SCU), or C-FIND.

A report may come on the association of the request, on a later one of ours, or on one that the PACS opens to our
receiver; all end in `take_report`. What is never reported is asked for again. A destination that does not commit is
searched for the instances, by C-FIND or QIDO-RS: `verified` is the weaker state.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Sequence
from functools import partial

from appliance.buffer import Buffer, ObjectError
from appliance.buffer.commitments import Commitments, Reported, Uncommitted
from appliance.dicom import commitment, dimse, status
from appliance.dicom.association import Association
from appliance.dicom.build_results import Alarm
from appliance.dicom.describe import LONGEST_PREFIX, describe
from appliance.dicom.find_instances import CONTEXT as FIND
from appliance.dicom.find_instances import has_instance
from appliance.dicom.part10 import dataset_of
from appliance.dicom.services import NRequest
from appliance.dicom.stow_client import StowConnection
from appliance.dicom.uids import IMPLICIT, STORAGE_COMMITMENT
from appliance.errors import DeliveryError, PeerError, StorageError
from appliance.settings import DicomDestination, DicomwebDestination

ENOUGH = {"none": "sent", "verify": "verified", "required": "committed"}  # by `commit` in the settings

Peer = DicomDestination | DicomwebDestination
Link = Association | StowConnection

_COMMIT = (STORAGE_COMMITMENT, IMPLICIT)
_BATCH = 100
_GATHER_S = 10.0  # so that not every single image is a transaction
_REPORT_S = 1.0  # for a report while the association is open
_LISTEN_EVERY_S = 300.0  # some PACS report only on an association that we open
_REFUSED_S = 600.0  # so long it is not asked again
_LOOK_AGAIN_S = 300.0  # for what C-FIND did not find: a PACS files what it took in its own time
_RETRY_MIN_S, _RETRY_MAX_S = 10.0, 3600.0
_IDLE_S = 1.0

log = logging.getLogger(__name__)


def take_report(commitments: Commitments, request: NRequest, now: float) -> Reported:
    """Take an N-EVENT-REPORT. Raises PeerError when it cannot be read."""
    report = commitment.read(request.data, request.transfer_syntax_uid)
    reported = commitments.report(report.transaction_uid, {uid for _, uid in report.instances}, report.failed, now)
    log.info("commitment %s: %s", report.transaction_uid, reported)
    return reported


class RequestCommitment:
    """For one destination; one thread. `step` does one batch; everything it knows is rebuilt after a restart."""

    def __init__(self, name: str, peer: Peer, buffer: Buffer, alarm: Alarm) -> None:
        self._name, self._peer, self._buffer, self._alarm = name, peer, buffer, alarm
        self._commitments = Commitments(buffer.database)
        self._required = peer.commit == "required"
        self._again_s = peer.commit_timeout_h * 3600
        self._failures = 0
        self._not_before = self._refused_until = self._listened = 0.0

    def loop(self, stop: threading.Event) -> None:
        """Ask until `stop`."""
        while not stop.is_set():
            try:
                worked = self.step(time.time())
                self._alarm(f"buffer commitment {self._name}", "")
            except StorageError as error:
                self._alarm(f"buffer commitment {self._name}", str(error))
                worked = False
            if not worked:
                stop.wait(_IDLE_S)

    def step(self, now: float) -> bool:
        """Ask for one batch, if there is any. False: nothing to do now."""
        self._tell_of_lost()
        if 0 < self._not_before - now <= _RETRY_MAX_S:
            return False
        items = self._next(now)
        listens = self._required and not 0 <= now - self._listened < _LISTEN_EVERY_S
        if not items and not (listens and self._commitments.waits(self._name)):
            return False
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        try:
            with self._connect(now) as link:
                self._ask(link, transaction_uid, items, now)
        except (DeliveryError, PeerError) as error:
            self._commitments.ask_again(transaction_uid, now)
            self._later(str(error), now)
            return False
        self._failures = 0
        return bool(items)

    def _next(self, now: float) -> list[Uncommitted]:
        again_s = self._again_s if self._required else _LOOK_AGAIN_S
        items = self._commitments.uncommitted(self._name, now - again_s, now, _BATCH)
        gathering = len(items) < _BATCH and all(0 <= now - item.sent_s < _GATHER_S for item in items)
        return [] if gathering else items

    def _connect(self, now: float) -> Link:
        if isinstance(self._peer, DicomwebDestination):
            return StowConnection(self._name, self._peer)
        self._listened = now
        return Association(self._name, self._peer, [_COMMIT, FIND], take_event=partial(self._event, now))

    def _ask(self, link: Link, transaction_uid: str, items: Sequence[Uncommitted], now: float) -> None:
        if items:
            self._commitments.begin(transaction_uid, self._name, items, now)
        if isinstance(link, Association) and self._required:
            if not items:
                return link.wait_for_events(_REPORT_S, lambda: False)
            if not 0 < self._refused_until - now <= _REFUSED_S:
                refusal = self._request(link, transaction_uid, items)
                if not refusal:
                    self._accepted(items)
                    return link.wait_for_events(_REPORT_S, lambda: self._commitments.is_reported(transaction_uid))
                self._refused_until = now + _REFUSED_S
                self._warn(refusal)
        self._look_for(link, transaction_uid, items, now)
        self._commitments.drop(transaction_uid)

    def _request(self, assoc: Association, transaction_uid: str, items: Sequence[Uncommitted]) -> str:
        """N-ACTION; gives why it was refused. Raises DeliveryError when nobody knows."""
        command = partial(
            dimse.n_action_rq,
            sop_class_uid=STORAGE_COMMITMENT,
            sop_instance_uid=commitment.INSTANCE,
            action=commitment.REQUEST,
        )
        asked = tuple((item.sop_class_uid, item.sop_instance_uid) for item in items)
        data = commitment.write(commitment.Commitment(transaction_uid, asked), {})
        try:
            answer = assoc.normalized(_COMMIT, dimse.N_ACTION_RQ, command, data)
        except DeliveryError as error:
            if not error.permanent:
                raise
            return str(error)
        return "" if answer == status.SUCCESS else f"destination {self._name!r}: N-ACTION was answered 0x{answer:04X}"

    def _accepted(self, items: Sequence[Uncommitted]) -> None:
        self._refused_until = 0.0
        n_late = sum(item.asked_s > 0 for item in items)
        if n_late:
            self._warn(
                f"destination {self._name!r}: {n_late} instances were not reported on within "
                f"{self._peer.commit_timeout_h:g} h and are asked for again; check that it knows our address"
            )
        else:
            self._alarm(f"commitment {self._name}", "")

    def _look_for(self, link: Link, transaction_uid: str, items: Sequence[Uncommitted], now: float) -> None:
        """Search for each. What a site that only verifies does not find for long is taken as lost."""
        try:
            found = {item.sop_instance_uid for item in items if self._is_there(link, item)}
        except DeliveryError as error:
            if not error.permanent:
                raise
            return self._warn(str(error))
        lost = {
            item.sop_instance_uid: status.NO_SUCH_INSTANCE
            for item in items
            if not self._required and item.sop_instance_uid not in found and now - item.sent_s > self._again_s
        }
        self._commitments.report(transaction_uid, found, lost, now, state="verified")
        if not self._required:
            self._alarm(f"commitment {self._name}", "")

    def _is_there(self, link: Link, item: Uncommitted) -> bool:
        try:
            data = dataset_of(self._buffer.segments.peek(item.place, LONGEST_PREFIX))
            said, _ = describe(data, item.transfer_syntax_uid)
        except ObjectError:  # it asks by the instance alone then
            said = {}
        study, series = said.get("StudyInstanceUID", ""), said.get("SeriesInstanceUID", "")
        return has_instance(link, study, series, item.sop_instance_uid)

    def _event(self, now: float, request: NRequest) -> int:
        try:
            known = take_report(self._commitments, request, now).known
        except PeerError as error:
            log.warning("a report of destination %r cannot be read: %s", self._name, error)
            return status.INVALID_ARGUMENT
        return status.SUCCESS if known else status.NO_SUCH_INSTANCE

    def _later(self, reason: str, now: float) -> None:
        self._not_before = now + min(_RETRY_MAX_S, _RETRY_MIN_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        what = "committed" if self._required else "verified"
        text = f"{reason}; what was sent stays here until it is {what}, or set another commit for this destination"
        self._alarm(f"commitment {self._name}", text)

    def _tell_of_lost(self) -> None:
        n = self._commitments.n_quarantined(self._name)
        text = f"destination {self._name!r}: took {n} instances and did not keep them; they are kept in quarantine"
        self._alarm(f"lost {self._name}", text if n else "")
