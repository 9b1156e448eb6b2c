# SPDX-License-Identifier: Apache-2.0
"""Tells a modality that asked whether its instances are safe with us (PS3.4 annex J, as SCP).

The request is kept and answered at once; the report goes on an association of our own, tried until it is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial

from appliance.buffer import Buffer
from appliance.buffer.commitment_requests import CommitmentRequest, CommitmentRequests
from appliance.dicom import commitment, dimse, status
from appliance.dicom.association import Association
from appliance.dicom.build_results import Alarm
from appliance.dicom.services import NRequest, NResponse
from appliance.errors import DeliveryError, PeerError, StorageError
from appliance.settings import DicomDestination, Peer

_CONTEXT = (commitment.SOP_CLASS, commitment.IMPLICIT)
_ROLES = ((commitment.SOP_CLASS, 0, 1),)  # on this association we are the SCP
_INDEX_S = 10.0  # what is missing may have come milliseconds ago
_RETRY_MIN_S, _RETRY_MAX_S = 5.0, 3600.0
_IDLE_S = 0.5

log = logging.getLogger(__name__)


def take_request(requests: CommitmentRequests, peers: Mapping[str, Peer], request: NRequest, now: float) -> NResponse:
    """Answer an N-ACTION. Raises StorageError."""
    if not any(peer.ae_title == request.calling_ae_title and peer.port for peer in peers.values()):
        log.warning("commitment refused: %r is not in listen.peers with a port to report to", request.calling_ae_title)
        return NResponse(status.PROCESSING_FAILURE)
    try:
        asked = commitment.read(request.data, request.transfer_syntax_uid)
    except PeerError as error:
        log.warning("commitment refused: %s", error)
        return NResponse(status.INVALID_ARGUMENT)
    requests.put(asked.transaction_uid, request.calling_ae_title, asked.instances, now)
    return NResponse(status.SUCCESS)


class AnswerCommitment:
    """Reports to those who asked; one thread of the deliverer process."""

    def __init__(self, buffer: Buffer, peers: Mapping[str, Peer], ae_title: str, alarm: Alarm) -> None:
        self._requests, self._peers, self._ae_title, self._alarm = (
            CommitmentRequests(buffer.database),
            {peer.ae_title: peer for peer in peers.values() if peer.port},
            ae_title,
            alarm,
        )

    def loop(self, stop: threading.Event) -> None:
        """Answer until `stop`."""
        while not stop.is_set():
            try:
                self.step(time.time())
                self._alarm("buffer commitment", "")
            except StorageError as error:
                self._alarm("buffer commitment", str(error))
            stop.wait(_IDLE_S)

    def step(self, now: float) -> None:
        """Answer what is due."""
        for request in self._requests.due(now):
            self._answer(request, now)

    def _answer(self, request: CommitmentRequest, now: float) -> None:
        report = self._report(request)
        if report.failed and now - request.created_s < _INDEX_S:
            return self._requests.later(request, now + 1)
        try:
            self._send(request, report)
        except DeliveryError as error:
            wait_s = min(_RETRY_MAX_S, _RETRY_MIN_S * 2.0 ** min(request.attempts, 20))
            self._requests.later(request, now + wait_s)
            return self._alarm(f"report to {request.calling_ae_title}", str(error))
        self._requests.done(request, now)
        self._alarm(f"report to {request.calling_ae_title}", "")

    def _report(self, request: CommitmentRequest) -> commitment.Commitment:
        held = self._requests.held([uid for _, uid in request.instances])
        failed = {}
        for sop_class, uid in request.instances:
            if uid not in held:
                failed[uid] = commitment.NO_SUCH_INSTANCE
            elif held[uid] != sop_class:
                failed[uid] = commitment.CLASS_CONFLICT
        good = tuple(one for one in request.instances if one[1] not in failed)
        return commitment.Commitment(request.transaction_uid, good, failed)

    def _send(self, request: CommitmentRequest, report: commitment.Commitment) -> None:
        title = request.calling_ae_title
        peer = self._peers.get(title)
        if peer is None or peer.port is None:
            raise DeliveryError(
                f"report to {title!r}: it is not in listen.peers any more; put it back", permanent=False
            )
        to = DicomDestination(host=peer.host, port=peer.port, ae_title=title, calling_ae_title=self._ae_title)
        command = partial(
            dimse.n_event_report_rq,
            sop_class_uid=commitment.SOP_CLASS,
            sop_instance_uid=commitment.INSTANCE,
            event=commitment.SOME if report.failed else commitment.ALL,
        )
        data = commitment.write(report, {uid: sop_class for sop_class, uid in request.instances})
        with Association(title, to, [_CONTEXT], _ROLES) as assoc:
            answer = assoc.normalized(_CONTEXT, dimse.N_EVENT_REPORT_RQ, command, data)
        if answer != status.SUCCESS:
            raise DeliveryError(f"report to {title!r}: was answered 0x{answer:04X}; will try again", permanent=False)
