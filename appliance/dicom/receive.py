# SPDX-License-Identifier: Apache-2.0
"""The receiver process: what comes in is on disk before it is acknowledged, and in the index soon after."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from appliance.buffer import Buffer, Kept
from appliance.buffer.commitment_requests import CommitmentRequests
from appliance.buffer.commitments import Commitments
from appliance.buffer.mpps import ProcedureSteps
from appliance.buffer.series import end_associations
from appliance.dicom import dimse, status
from appliance.dicom.acceptor import CALLED_UNKNOWN, CALLING_UNKNOWN, Acceptor, Slots
from appliance.dicom.answer_commitment import take_request
from appliance.dicom.build_results import Alarm
from appliance.dicom.keep_instance import KeepInstance
from appliance.dicom.negotiation import Request
from appliance.dicom.procedure_step import take_step
from appliance.dicom.request_commitment import take_report
from appliance.dicom.services import Incoming, NRequest, NResponse
from appliance.dicom.uids import MPPS, STORAGE_COMMITMENT
from appliance.dicom.web.serve import WebServer
from appliance.errors import ConfigError, PeerError, StorageError
from appliance.settings import ListenDicomweb, Settings
from appliance.tls import server_context

log = logging.getLogger(__name__)

_INDEX_S = 0.05  # instances that came within this time share one transaction


def addresses_of(host: str) -> frozenset[str]:
    """Give the addresses of a peer; a name that is not known now is one more restart away."""
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset({host})


class Receiver:
    """What the receiver process does; the services of its listener."""

    def __init__(self, settings: Settings, alarm: Alarm) -> None:
        if settings.listen.dicom is None:
            raise ConfigError("receive: listen.dicom is not set; add it or run no receiver")
        self._listen, self._alarm = settings.listen.dicom, alarm
        self._buffer = Buffer(settings.site.data_dir, int(settings.buffer.reserve_gb * 1e9))
        self._lock = threading.Lock()
        self._received = self._refused = self.port = 0
        self._ended: list[tuple[str, bool]] = []
        self._acceptors: list[Acceptor] = []
        self._peers = [(peer.ae_title, addresses_of(peer.host)) for peer in settings.listen.peers.values()]
        self._known = settings.listen.peers
        self._commitments = Commitments(self._buffer.database)
        self._requests = CommitmentRequests(self._buffer.database)
        self._steps = ProcedureSteps(self._buffer.database)
        self._slots = Slots(self._listen.max_associations, self._listen.max_per_address)
        self._tls, self._dicomweb = settings.listen.dicom_tls, settings.listen.dicomweb
        self._web: WebServer | None = None
        self._waiting = threading.Event()  # something is to be indexed

    def run(self, stop: threading.Event) -> None:
        """Listen until `stop`."""
        try:
            self._listen_on((self._listen.bind, self._listen.port), "listen.dicom", None)
            if self._tls:
                context = server_context(self._tls, "listen.dicom_tls")
                self._listen_on((self._tls.bind, self._tls.port), "listen.dicom_tls", context)
            if self._dicomweb:
                self._web = self._serve_web(self._dicomweb)
            self.port = self._acceptors[0].address[1]
            self._serve(stop)
        finally:
            for acceptor in self._acceptors:
                acceptor.close()
            if self._web:
                self._web.close()
            self._index(self._buffer.index)

    def _listen_on(self, address: tuple[str, int], key: str, tls: ssl.SSLContext | None) -> None:
        try:
            self._acceptors.append(Acceptor(address, self, refusal=self._refusal, slots=self._slots, tls=tls))
        except OSError as error:
            text = f"receive: cannot listen on {address[0]}:{address[1]}: {error.strerror}"
            raise ConfigError(f"{text}; check {key}") from error

    def _serve_web(self, settings: ListenDicomweb) -> WebServer:
        try:
            return WebServer(settings, self._buffer, self._told, lambda: self._index(self._buffer.index))
        except OSError as error:
            text = f"receive: cannot listen on {settings.bind}:{settings.port}: {os.strerror(error.errno or 0)}"
            raise ConfigError(f"{text}; check listen.dicomweb") from error

    def _serve(self, stop: threading.Event) -> None:
        """Index what came, soon after it came."""
        self._index(self._buffer.index_left_behind)  # of an earlier process that was killed
        while not stop.is_set():
            if self._waiting.wait(0.2):
                stop.wait(_INDEX_S)
                self._waiting.clear()
                self._index(self._buffer.index)

    def _refusal(self, request: Request, address: str) -> int | None:
        if request.called_ae_title != self._listen.ae_title:
            return CALLED_UNKNOWN
        known = any(title == request.calling_ae_title and address in addresses for title, addresses in self._peers)
        return None if known or not self._peers else CALLING_UNKNOWN

    def store(self, incoming: Incoming) -> KeepInstance:
        """Begin to keep one instance."""
        return KeepInstance(self._buffer, incoming, self._told)

    def normalized(self, request: NRequest) -> NResponse:
        """Storage commitment: reports of what we asked for, and requests of others; and performed procedure steps."""
        now = time.time()
        try:
            if request.class_uid == MPPS and request.command in (dimse.N_CREATE_RQ, dimse.N_SET_RQ):
                return take_step(self._steps, request, now)
            if request.class_uid == STORAGE_COMMITMENT and request.command == dimse.N_EVENT_REPORT_RQ:
                known = take_report(self._commitments, request, now).known
                return NResponse(status.SUCCESS if known else status.NO_SUCH_INSTANCE)
            if request.class_uid == STORAGE_COMMITMENT and request.command == dimse.N_ACTION_RQ:
                return take_request(self._requests, self._known, request, now)
        except PeerError as error:
            log.warning("request from %s cannot be read: %s", request.address, error)
            return NResponse(status.INVALID_ARGUMENT)
        except StorageError as error:
            self._alarm("receiver", str(error))
            return NResponse(status.PROCESSING_FAILURE)
        return NResponse(status.UNRECOGNIZED)

    def ended(self, association: str, *, released: bool) -> None:
        """Note it for the series that it brought; recorded once all of that is in the index."""
        with self._lock:
            self._ended.append((association, released))
        self._waiting.set()

    def _told(self, refused: str) -> None:
        with self._lock:
            self._received += not refused
            self._refused += bool(refused)
        self._alarm("receiver", refused)
        self._waiting.set()

    def _index(self, index: Callable[[], list[Kept]]) -> None:
        """The bytes are safe whatever happens here: what cannot be indexed now is indexed later."""
        with self._lock:
            ended, self._ended = self._ended, []
        try:
            kept = index()
            if ended:
                end_associations(self._buffer.database, ended, time.time())
        except StorageError as error:
            with self._lock:
                self._ended = ended + self._ended
            self._alarm("receiver index", f"{error}; what came in is safe and waits for the index")
            self._waiting.set()
            return
        self._alarm("receiver index", "")
        if any(one.conflict for one in kept):
            self._alarm("receiver conflict", "receive: one UID came with different bytes; both are kept")

    def status(self) -> dict[str, Any]:
        """Plain values."""
        listeners = Counter[str]()
        for acceptor in self._acceptors:
            listeners.update(acceptor.status())
        counts = {"received": self._received, "refused": self._refused, "port": self.port}
        web = {"dicomweb": self._web.status()} if self._web else {}
        return {**counts, "listener": dict(listeners), **web}

    def close(self) -> None:
        """Close the buffer, after `run`."""
        self._buffer.close()
