# SPDX-License-Identifier: Apache-2.0
"""Tells a modality that asked whether its instances are safe with us (PS3.4 annex J, as SCP).

The request is kept and answered at once; the report goes on an association of our own, tried until it is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial

from appliance.buffer import Buffer, ObjectError
from appliance.buffer.commitment_requests import CommitmentRequest, CommitmentRequests, Holding
from appliance.dicom import commitment, dimse, status
from appliance.dicom.association import Association
from appliance.dicom.build_results import Alarm
from appliance.dicom.services import NRequest, NResponse
from appliance.dicom.uids import IMPLICIT, STORAGE_COMMITMENT
from appliance.errors import DeliveryError, PeerError, StorageError
from appliance.settings import DicomDestination, Peer

_CONTEXT = (STORAGE_COMMITMENT, IMPLICIT)
_ROLES = ((STORAGE_COMMITMENT, 0, 1),)  # on this association we are the SCP
_INDEX_S = 10.0  # what is missing may have come milliseconds ago
_RETRY_MIN_S, _RETRY_MAX_S = 5.0, 3600.0
_IDLE_S = 0.5
_LATER = {status.PROCESSING_FAILURE, status.RESOURCE_LIMITATION}  # every other answer says that it was told

log = logging.getLogger(__name__)


def take_request(requests: CommitmentRequests, peers: Mapping[str, Peer], request: NRequest, now: float) -> NResponse:
    """Answer an N-ACTION. Raises StorageError."""
    if request.instance_uid != commitment.INSTANCE:
        return NResponse(status.NO_SUCH_INSTANCE)
    if request.type_id != commitment.REQUEST:
        return NResponse(status.NO_SUCH_ACTION)
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


def why_not(buffer: Buffer, sop_class_uid: str, holdings: Sequence[Holding]) -> int:
    """Give the reason why an instance cannot be promised; 0: it can. What is here is read back: once it is promised,
    nobody else may have it."""
    if not holdings:
        return commitment.NO_SUCH_INSTANCE
    same = [holding for holding in holdings if holding.sop_class_uid == sop_class_uid]
    if not same:
        return commitment.CLASS_CONFLICT
    try:
        for holding in same:
            if holding.place is not None:
                buffer.segments.read(holding.place, holding.digest)
    except ObjectError as error:
        log.error("commitment refused for an instance: %s", error)
        return commitment.OTHER_FAILURE
    return 0


class AnswerCommitment:
    """Reports to those who asked; one thread of the deliverer process."""

    def __init__(self, buffer: Buffer, peers: Mapping[str, Peer], ae_title: str, alarm: Alarm) -> None:
        self._buffer, self._ae_title, self._alarm = buffer, ae_title, alarm
        self._requests = CommitmentRequests(buffer.database)
        self._peers = {peer.ae_title: peer for peer in peers.values() if peer.port}

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
        """Answer what is due; a peer that is away holds up nobody else."""
        away: set[str] = set()
        for request in self._requests.due(now):
            if request.calling_ae_title not in away and not self._answer(request, now):
                away.add(request.calling_ae_title)

    def _answer(self, request: CommitmentRequest, now: float) -> bool:
        """Answer one, or put it off. False: its peer is away."""
        held = self._requests.held([uid for _, uid in request.instances])
        if now - request.created_s < _INDEX_S and any(uid not in held for _, uid in request.instances):
            self._requests.later(request, now + 1)
            return True
        try:
            self._send(request, held)
        except DeliveryError as error:
            wait_s = min(_RETRY_MAX_S, _RETRY_MIN_S * 2.0 ** min(request.attempts, 20))
            self._requests.later(request, now + wait_s)
            self._requests.peer_away(request.calling_ae_title, now + wait_s)
            self._alarm(f"report to {request.calling_ae_title}", str(error))
            return False
        self._requests.done(request, now)
        self._alarm(f"report to {request.calling_ae_title}", "")
        return True

    def _report(self, request: CommitmentRequest, held: Mapping[str, Sequence[Holding]]) -> commitment.Commitment:
        reasons = {
            uid: why_not(self._buffer, sop_class, held.get(uid, ())) for sop_class, uid in set(request.instances)
        }
        failed = {uid: reason for uid, reason in reasons.items() if reason}
        good = tuple(one for one in request.instances if one[1] not in failed)
        return commitment.Commitment(request.transaction_uid, good, failed)

    def _send(self, request: CommitmentRequest, held: Mapping[str, Sequence[Holding]]) -> None:
        title = request.calling_ae_title
        peer = self._peers.get(title)
        if peer is None or peer.port is None:
            raise DeliveryError(
                f"report to {title!r}: it is not in listen.peers any more; put it back", permanent=False
            )
        to = DicomDestination(host=peer.host, port=peer.port, ae_title=title, calling_ae_title=self._ae_title)
        with Association(title, to, [_CONTEXT], _ROLES) as assoc:
            report = self._report(request, held)
            command = partial(
                dimse.n_event_report_rq,
                sop_class_uid=STORAGE_COMMITMENT,
                sop_instance_uid=commitment.INSTANCE,
                event=commitment.SOME if report.failed else commitment.ALL,
            )
            data = commitment.write(report, {uid: sop_class for sop_class, uid in request.instances})
            answer = assoc.normalized(_CONTEXT, dimse.N_EVENT_REPORT_RQ, command, data)
        if answer in _LATER:
            raise DeliveryError(f"report to {title!r}: was answered 0x{answer:04X}; will try again", permanent=False)
        if answer != status.SUCCESS:
            log.warning("report to %r: was answered 0x%04X; it was told", title, answer)
