# SPDX-License-Identifier: Apache-2.0
"""Asks a destination to commit to what it said it stored (PS3.4 annex J, as SCU).

The report may come on the association of the request, on a later one, or on one that the PACS opens to our receiver;
all end in `take_report`. What is never reported is asked for again.
"""

from __future__ import annotations

import logging
import uuid
from functools import partial

from appliance.buffer import Buffer
from appliance.buffer.commitments import Commitments, Reported
from appliance.dicom import commitment, dimse, status
from appliance.dicom.association import Association
from appliance.dicom.build_results import Alarm
from appliance.dicom.services import NRequest
from appliance.errors import DeliveryError, PeerError
from appliance.settings import DicomDestination

_CONTEXT = (commitment.SOP_CLASS, commitment.IMPLICIT)
_REPORT_S = 0.5  # for a report on the same association; the PACS that opens its own does not send one here
_RETRY_MIN_S, _RETRY_MAX_S = 10.0, 3600.0

log = logging.getLogger(__name__)


def take_report(commitments: Commitments, request: NRequest, now: float) -> Reported:
    """Take an N-EVENT-REPORT. Raises PeerError when it cannot be read."""
    report = commitment.read(request.data, request.transfer_syntax_uid)
    reported = commitments.report(report.transaction_uid, {uid for _, uid in report.instances}, report.failed, now)
    log.info("commitment %s: %s", report.transaction_uid, reported)
    return reported


class RequestCommitment:
    """For one destination; used by its thread."""

    def __init__(self, name: str, peer: DicomDestination, buffer: Buffer, alarm: Alarm) -> None:
        self._name, self._peer, self._alarm = name, peer, alarm
        self._commitments = Commitments(buffer.database)
        self._failures = 0
        self._not_before = 0.0

    def step(self, now: float) -> bool:
        """Ask for one batch, if there is any. False: nothing to do now."""
        if self._peer.commit != "required" or 0 < self._not_before - now <= _RETRY_MAX_S:
            return False
        items = self._commitments.uncommitted(self._name, now - self._peer.commit_timeout_h * 3600)
        if not items:
            return False
        transaction_uid = f"2.25.{uuid.uuid4().int}"
        self._commitments.begin(transaction_uid, self._name, items, now)
        asked = commitment.Commitment(
            transaction_uid, tuple((item.sop_class_uid, item.sop_instance_uid) for item in items)
        )
        try:
            self._ask(asked, now)
        except (DeliveryError, PeerError) as error:
            self._commitments.refused(transaction_uid, now)
            self._later(str(error), now)
            return False
        self._failures, self._not_before = 0, 0.0
        self._alarm(f"commitment {self._name}", "")
        return True

    def _later(self, reason: str, now: float) -> None:
        self._not_before = now + min(_RETRY_MAX_S, _RETRY_MIN_S * 2.0 ** min(self._failures, 20))
        self._failures += 1
        text = f"{reason}; what was sent stays here until it is committed, or set commit: none for this destination"
        self._alarm(f"commitment {self._name}", text)

    def _ask(self, asked: commitment.Commitment, now: float) -> None:
        command = partial(
            dimse.n_action_rq,
            sop_class_uid=commitment.SOP_CLASS,
            sop_instance_uid=commitment.INSTANCE,
            action=commitment.REQUEST,
        )
        with Association(self._name, self._peer, [_CONTEXT]) as assoc:
            answer = assoc.normalized(_CONTEXT, dimse.N_ACTION_RQ, command, commitment.write(asked, {}))
            if answer != status.SUCCESS:
                raise DeliveryError(
                    f"destination {self._name!r}: N-ACTION was answered 0x{answer:04X}", permanent=False
                )
            assoc.wait_for_event(_CONTEXT, _REPORT_S)
            for event in assoc.events:
                take_report(self._commitments, event, now)
