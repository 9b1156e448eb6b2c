# SPDX-License-Identifier: Apache-2.0
"""An association that we request: its messages over one blocking socket, a deadline on everything.

Rule: every failure is a DeliveryError; only a status or a refused presentation context is ever permanent.
It has no thread of its own, so that no response can be lost between two. What a peer writes in an error comment is
never repeated: it may name a patient.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

from appliance.dicom import dimse, negotiation, status
from appliance.dicom.services import NRequest
from appliance.dicom.uids import IMPLICIT, VERIFICATION, to_text
from appliance.errors import DeliveryError, PeerError
from appliance.settings import DicomDestination

_BUFFERS_AT_ONCE = 64  # of sendmsg; IOV_MAX is 1024
_SLOWEST_BYTES_PER_S = 50_000  # a peer that reads slower than this is taken for dead
_LONGEST_MESSAGE = 4 << 20
_RELEASE_S = 2.0
_LOOK_S = 0.05
_MOST_FOUND = 1000
ECHO_CONTEXT = (VERIFICATION, IMPLICIT)


class Association:
    """Open on return from the constructor. Use it from one thread, as a context manager (which releases)."""

    def __init__(
        self,
        name: str,
        peer: DicomDestination,
        contexts: Sequence[tuple[str, str]],
        roles: Sequence[tuple[str, int, int]] = (),
        take_event: Callable[[NRequest], int] | None = None,
    ) -> None:
        self._peer, self._timeout_s = f"destination {name!r} at {peer.host}:{peer.port}", peer.timeout_s
        self._message_id = 0
        self._take_event = take_event  # what the peer reports meanwhile; gives the status to answer
        try:
            self._socket = socket.create_connection((peer.host, peer.port), timeout=peer.timeout_s)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise self._transient(f"cannot connect: {reason}; check host, port and network") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._negotiate(peer, contexts, roles)
        except BaseException:
            self._socket.close()
            raise

    def _transient(self, text: str) -> DeliveryError:
        return DeliveryError(f"{self._peer}: {text}", permanent=False)

    def __enter__(self) -> Association:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    def _negotiate(
        self, peer: DicomDestination, contexts: Sequence[tuple[str, str]], roles: Sequence[tuple[str, int, int]]
    ) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._send([negotiation.request(peer.calling_ae_title, peer.ae_title, contexts, roles)], deadline)
            kind, header, body = self._receive_pdu(deadline)
            if kind == dimse.ASSOCIATE_RJ:
                raise self._transient(
                    f"association rejected, {negotiation.rejection(header + body)}; check the AE titles"
                )
            if kind != dimse.ASSOCIATE_AC:
                raise PeerError(f"the association was answered with PDU type 0x{kind:02X}")
            self._syntaxes, self._longest = negotiation.accepted(header + body)
        except (OSError, PeerError) as error:
            raise self._transient(f"no association: {_words(error)}; will try again") from error
        self._contexts = {
            context: 2 * index + 1
            for index, context in enumerate(contexts)
            if self._syntaxes.get(2 * index + 1) == context[1]
        }
        self._proposed = frozenset(contexts)

    def takes(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Whether the peer accepted this."""
        return (sop_class_uid, transfer_syntax_uid) in self._contexts

    def covers(self, contexts: Iterable[tuple[str, str]]) -> bool:
        """Whether all of these were proposed here (they may have been refused)."""
        return self._proposed.issuperset(contexts)

    def echo(self) -> None:
        """C-ECHO. Needs a context for verification. Raises DeliveryError."""
        context_id = self._contexts.get(ECHO_CONTEXT)
        if context_id is None:
            raise self._transient("C-ECHO is not accepted; check the AE titles on both sides")
        answer = self._exchange(context_id, dimse.C_ECHO_RQ, dimse.echo_rq(self._next_id()), b"")
        if answer != status.SUCCESS:
            raise self._transient(f"C-ECHO was answered 0x{answer:04X}; look at the peer's log")

    def store(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, dataset: memoryview) -> int:
        """C-STORE of an encoded data set; gives the status, a success or warning. Raises DeliveryError."""
        context_id = self._contexts.get((sop_class_uid, transfer_syntax_uid))
        if context_id is None:
            raise DeliveryError(
                f"{self._peer}: does not take SOP class {sop_class_uid} in transfer syntax {transfer_syntax_uid}; "
                "allow it there",
                permanent=True,
            )
        command = dimse.store_rq(self._next_id(), sop_class_uid, sop_instance_uid)
        answer = self._exchange(context_id, dimse.C_STORE_RQ, command, dataset)
        if not status.is_stored(answer):
            raise status.error_for(answer, self._peer)
        return answer

    def normalized(self, context: tuple[str, str], request: int, command: Callable[[int], bytes], data: bytes) -> int:
        """Send a DIMSE-N request with a data set; `command` encodes it for a message id. Gives the status. Raises
        DeliveryError, permanent where the peer does not take this context."""
        context_id = self._context_for(context)
        return self._exchange(context_id, request, command(self._next_id()), data)

    def find(self, context: tuple[str, str], identifier: bytes) -> list[bytes]:
        """C-FIND; gives the identifiers that match (PS3.7 9.1.2). Raises DeliveryError as `normalized` does."""
        context_id = self._context_for(context)
        found: list[bytes] = []
        answer = self._exchange(context_id, dimse.C_FIND_RQ, dimse.find_rq(self._next_id(), context[0]), identifier)
        with self._told_as_delivery_error():
            while status.is_pending(answer):
                deadline = time.monotonic() + self._timeout_s
                found.append(self._receive_message(deadline, command=False)[1])
                if len(found) > _MOST_FOUND:
                    raise PeerError(f"more than {_MOST_FOUND} answers to a C-FIND")
                answer = self._receive_answer(context_id, dimse.C_FIND_RQ, deadline)
        if answer != status.SUCCESS:
            raise self._transient(f"C-FIND was answered 0x{answer:04X}; look at the peer's log")
        return found

    def _context_for(self, context: tuple[str, str]) -> int:
        context_id = self._contexts.get(context)
        if context_id is None:
            raise DeliveryError(f"{self._peer}: does not take {context[0]}; allow it there", permanent=True)
        return context_id

    def wait_for_events(self, seconds: float, is_enough: Callable[[], bool]) -> None:
        """Take N-EVENT-REPORTs of the peer until `is_enough`, for so long; that it hangs up is no error."""
        end = time.monotonic() + seconds
        with contextlib.suppress(OSError, PeerError):
            while not is_enough() and time.monotonic() < end:
                if select.select([self._socket], [], [], _LOOK_S)[0]:
                    context_id, command = self._receive_message(time.monotonic() + self._timeout_s, command=True)
                    self._took_event(context_id, command)

    def _took_event(self, context_id: int, command: bytes) -> bool:
        """Answer an N-EVENT-REPORT after it was taken; False: it is something else."""
        values = dimse.read_command(command)
        numbers = {key: int.from_bytes(values.get(key, b""), "little") for key in (0x0100, 0x0110, 0x1002)}
        if self._take_event is None or numbers[0x0100] != dimse.N_EVENT_REPORT_RQ:
            return False
        deadline = time.monotonic() + self._timeout_s
        data = self._receive_message(deadline, command=False)[1]
        sop_class, uid = (to_text(values.get(key, b"")) for key in (0x0002, 0x1000))
        syntax = self._syntaxes.get(context_id, "")
        code = self._take_event(NRequest(numbers[0x0100], sop_class, uid, numbers[0x1002], data, syntax, "", ""))
        answer = dimse.response(numbers[0x0100], numbers[0x0110], code, sop_class, uid)
        self._send(dimse.p_data(context_id, answer, self._longest, command=True), deadline)
        return True

    def _next_id(self) -> int:
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    def _exchange(self, context_id: int, request: int, command: bytes, dataset: bytes | memoryview) -> int:
        with self._told_as_delivery_error():
            deadline = time.monotonic() + self._timeout_s + len(dataset) / _SLOWEST_BYTES_PER_S
            self._send_message(context_id, command, dataset, deadline)
            return self._receive_answer(context_id, request, time.monotonic() + self._timeout_s)

    @contextlib.contextmanager
    def _told_as_delivery_error(self) -> Iterator[None]:
        try:
            yield
        except (OSError, PeerError) as error:
            raise self._transient(f"the association broke: {_words(error)}; will try again") from error

    def _receive_answer(self, context_id: int, request: int, deadline: float) -> int:
        """Give the status of the answer to the last `request`; a report of something else may come before it."""
        while True:
            context, command = self._receive_message(deadline, command=True)
            if not self._took_event(context, command):
                if context != context_id:
                    raise PeerError("the answer is no command of this presentation context")
                return dimse.response_status(command, request, self._message_id)

    def _send_message(self, context_id: int, command: bytes, dataset: bytes | memoryview, deadline: float) -> None:
        pdus = dimse.p_data(context_id, command, self._longest, command=True)
        if len(dataset):
            pdus = chain(pdus, dimse.p_data(context_id, dataset, self._longest, command=False))
        self._send(pdus, deadline)

    def _send(self, buffers: Iterable[bytes | memoryview], deadline: float) -> None:
        left = iter(buffers)
        while batch := [memoryview(buffer) for buffer in islice(left, _BUFFERS_AT_ONCE)]:
            while batch:
                self._arm(deadline)
                batch = _after(batch, self._socket.sendmsg(batch))

    def _arm(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(remaining)

    def _receive_exactly(self, n_bytes: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < n_bytes:
            self._arm(deadline)
            part = self._socket.recv(n_bytes - len(parts))
            # The kernel leaves quick acknowledgement by itself; without it a peer with Nagle waits 40 ms each time.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if not part:
                raise PeerError("the peer hung up")
            parts += part
        return bytes(parts)

    def _receive_pdu(self, deadline: float) -> tuple[int, bytes, bytes]:
        header = self._receive_exactly(6, deadline)
        kind, length = struct.unpack(">BxI", header)
        if length > negotiation.LONGEST_PDU:
            raise PeerError(f"a PDU of {length} bytes was announced")
        return kind, header, self._receive_exactly(length, deadline)

    def _receive_message(self, deadline: float, *, command: bool) -> tuple[int, bytes]:
        """Give one command set, or the data set behind it, and its presentation context."""
        message, first = bytearray(), None
        while True:
            kind, _, body = self._receive_pdu(deadline)
            if kind != dimse.P_DATA:
                raise PeerError("the peer aborted" if kind == dimse.ABORT else f"unexpected PDU type 0x{kind:02X}")
            for context, is_command, last, piece in dimse.fragments(body):
                message += piece
                first = context if first is None else first
                if context != first or is_command != command or len(message) > _LONGEST_MESSAGE:
                    raise PeerError("the answer is no command of this presentation context")
                if last:
                    return context, bytes(message)

    def release(self) -> None:
        """Release and hang up; a peer that does not answer is no error, nothing is owed any more."""
        deadline = time.monotonic() + min(self._timeout_s, _RELEASE_S)
        try:
            self._send([dimse.RELEASE_RQ_PDU], deadline)
            self._receive_pdu(deadline)
        except (OSError, PeerError):
            pass
        finally:
            self._socket.close()

    def abort(self) -> None:
        """Abort and hang up."""
        try:
            self._send([dimse.ABORT_PDU], time.monotonic() + _RELEASE_S)
        except OSError:
            pass
        finally:
            self._socket.close()


def _after(buffers: list[memoryview], n_sent: int) -> list[memoryview]:
    """Give what is left of `buffers` after `n_sent` bytes."""
    while buffers and n_sent >= len(buffers[0]):
        n_sent -= len(buffers.pop(0))
    if buffers:
        buffers[0] = buffers[0][n_sent:]
    return buffers


def _words(error: OSError | PeerError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) if isinstance(error, PeerError) else error.strerror or type(error).__name__
