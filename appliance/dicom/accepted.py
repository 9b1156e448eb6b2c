# SPDX-License-Identifier: Apache-2.0
"""One association that a peer requested of us: PDUs in, data sets handed on as they arrive, answers out.

Rule: every wait has a deadline, every length is checked before anything is taken, and a data set is never held whole.
What a peer wrote is never told, but its AE title.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance.dicom import dimse, negotiation, status
from appliance.dicom import upper_layer as ul
from appliance.dicom.inbound import Inbound
from appliance.dicom.negotiation import Context
from appliance.dicom.services import Incoming, NRequest, NResponse, Services, Writer
from appliance.dicom.uids import MPPS, STORAGE_COMMITMENT, VERIFICATION, to_text
from appliance.errors import PeerError, StorageError

_CLOSE_S = 2.0  # for the peer to hang up after a release, a rejection or an abort
_LONGEST_COMMAND = 1 << 16
_LONGEST_NORMALIZED = 4 << 20
_STAGE_BYTES = 1 << 18  # what is collected before it is handed on: peers send pieces of 16 KiB
_VALUE = {"class": 0x0002, "class_requested": 0x0003, "instance": 0x1000, "instance_requested": 0x1001}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How long and how much one association may take."""

    artim_s: float = 10.0  # from the connection to the request, a TLS handshake included
    pdu_s: float = 30.0  # from the first to the last byte of one PDU
    idle_s: float = 300.0  # between two PDUs
    instance_bytes: int = 1 << 36


class Message:
    """A command and, behind it, a data set, as their pieces come."""

    def __init__(self, context_id: int, context: Context) -> None:
        self.context_id, self.context = context_id, context
        self.command = bytearray()
        self.values: dict[int, bytes] | None = None
        self.n_bytes = 0
        self.collected = bytearray()
        self.writer: Writer | None = None
        self.refusal: int | None = None

    def number(self, element: int) -> int:
        """Give a US value of the command. Raises PeerError."""
        value = (self.values or {}).get(element, b"")
        if len(value) != 2:
            raise PeerError(f"a command lacks (0000,{element:04X})")
        return int.from_bytes(value, "little")

    def uid(self, *elements: int) -> str:
        """Give the first of these UIDs that is there, or an empty text."""
        for element in elements:
            value = (self.values or {}).get(element)
            if value is not None:
                return to_text(value)
        return ""


class Accepted:
    """One association, from the connection to its end, in the thread that calls `run`."""

    def __init__(
        self,
        sock: socket.socket,
        address: str,
        services: Services,
        decide: Callable[[Accepted, negotiation.Request], bytes | None],
        limits: Limits,
    ) -> None:
        self.address, self.id = address, secrets.token_hex(8)
        self._socket, self._services, self._decide, self._limits = sock, services, decide, limits
        self._machine = ul.UpperLayer()
        self._in = Inbound(sock)
        self._contexts: dict[int, Context] = {}
        self._calling, self._longest = "", 0
        self._message: Message | None = None
        self._released = False
        self._deadline = time.monotonic() + limits.artim_s
        self._stage, self._staged = bytearray(), 0

    def run(self) -> None:
        """Serve until it is over; the socket is closed then. Never raises for what a peer does."""
        self._machine.take(ul.CONNECTED)
        try:
            while self._machine.state != ul.IDLE:
                self._act(self._next())
        finally:
            self._drop_message()
            self._socket.close()
            if self._calling:
                self._services.ended(self.id, released=self._released)

    def hang_up(self) -> None:
        """End it from another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _next(self) -> str:
        """Wait for the next event."""
        waiting = self._machine.state in (ul.AWAIT_RQ, ul.AWAIT_CLOSE)
        try:
            if self._machine.state == ul.AWAIT_CLOSE:
                self._in.discard(self._deadline)
            if waiting:
                return ul.EVENT_OF_PDU[self._in.next_pdu(self._deadline)]
            return ul.EVENT_OF_PDU[self._in.next_pdu(time.monotonic() + self._limits.idle_s, self._limits.pdu_s)]
        except TimeoutError:
            if waiting:
                return ul.EXPIRED
            self._tell("it was silent for too long, or sent a PDU too slowly")
            return ul.ABORT
        except (EOFError, OSError):
            return ul.CLOSED
        except PeerError as error:
            self._tell(str(error))
            return ul.INVALID

    def _act(self, event: str) -> None:
        action = self._machine.take(event)
        try:
            if action == "AE-6":
                self._negotiate()
            elif action == "DT-2":
                self._data()
            elif action == "AR-2":
                self._release()
            elif action in ("AA-1", "AA-7", "AA-8"):
                self._abort(dimse.ABORT_PDU if event == ul.ABORT else dimse.PROVIDER_ABORT_PDU)
            elif action in ("AA-3", "AA-4") and self._calling:
                self._tell("aborted by the peer" if action == "AA-3" else "the connection was lost")
        except PeerError as error:
            self._tell(str(error))
            self._machine.take(ul.INVALID)
            self._abort(dimse.PROVIDER_ABORT_PDU)
        except OSError:
            self._machine.state = ul.IDLE  # the transport is gone

    def _tell(self, reason: str) -> None:
        log.warning("association from %s%s: %s", self.address, f" ({self._calling})" if self._calling else "", reason)

    def _abort(self, pdu: bytes) -> None:
        self._drop_message()
        self._deadline = time.monotonic() + _CLOSE_S
        self._send(pdu)

    def _send(self, *parts: bytes | memoryview) -> None:
        self._socket.settimeout(self._limits.pdu_s)
        self._socket.sendall(b"".join(parts))

    def _negotiate(self) -> None:
        request = negotiation.read_request(self._in.whole_pdu())
        self._calling, self._longest = request.calling_ae_title, request.longest_pdu
        rejection = self._decide(self, request)
        if rejection is not None:
            self._machine.take(ul.REJECT)
            self._deadline = time.monotonic() + _CLOSE_S
            self._tell(f"rejected: {negotiation.rejection(rejection)}")
            self._calling = ""
            return self._send(rejection)
        answer, self._contexts = negotiation.agree(request, SERVICES)
        self._machine.take(ul.ACCEPT)
        self._send(answer)

    def _release(self) -> None:
        if self._message is not None:
            raise PeerError("released in the middle of a message")
        self._released = True
        self._machine.take(ul.RELEASE)
        self._deadline = time.monotonic() + _CLOSE_S
        self._send(dimse.RELEASE_RP_PDU)

    # Messages

    def _data(self) -> None:
        for context_id, is_command, is_last, piece in dimse.fragments(self._in.body):
            message = self._message or self._begin(context_id)
            if context_id != message.context_id or is_command != (message.values is None):
                raise PeerError("a message's pieces are out of order")
            if is_command:
                self._take_command(message, piece, is_last)
            else:
                self._take_data(message, piece, is_last)

    def _begin(self, context_id: int) -> Message:
        context = self._contexts.get(context_id)
        if context is None:
            raise PeerError(f"presentation context {context_id} was not accepted")
        self._message = Message(context_id, context)
        return self._message

    def _take_command(self, message: Message, piece: bytes | memoryview, is_last: bool) -> None:
        if len(message.command) + len(piece) > _LONGEST_COMMAND:
            raise PeerError("a command set is too long")
        message.command += piece
        if not is_last:
            return
        message.values = dimse.read_command(bytes(message.command))
        field = message.number(0x0100)
        if field == dimse.C_CANCEL_RQ:
            self._message = None
        elif field & dimse.RESPONSE:
            raise PeerError(f"a response 0x{field:04X} to nothing")
        elif message.number(0x0800) == dimse.NO_DATASET:
            self._answer(message)
        elif field == dimse.C_STORE_RQ:
            self._begin_store(message)

    def _take_data(self, message: Message, piece: bytes | memoryview, is_last: bool) -> None:
        message.n_bytes += len(piece)
        if message.number(0x0100) != dimse.C_STORE_RQ:
            if message.n_bytes > _LONGEST_NORMALIZED:
                raise PeerError(f"a data set of more than {_LONGEST_NORMALIZED} bytes in a request that needs few")
            message.collected += piece
        elif message.writer is not None:
            self._store_piece(message, piece)
        if is_last:
            self._flush(message)
            self._answer(message)

    def _answer(self, message: Message) -> None:
        self._message = None
        field = message.number(0x0100)
        if field == dimse.C_STORE_RQ:
            answer = self._end_store(message)
        elif field == dimse.C_ECHO_RQ:
            answer = NResponse(status.SUCCESS)
        elif field in dimse.NORMALIZED:
            answer = self._normalized(message, field)
        else:
            answer = NResponse(status.UNRECOGNIZED)
        self._machine.take(ul.SEND_DATA)
        instance = answer.instance_uid or message.uid(_VALUE["instance"], _VALUE["instance_requested"])
        command = dimse.response(
            *(field, message.number(0x0110), answer.status, message.uid(_VALUE["class"], _VALUE["class_requested"])),
            instance if field != dimse.C_ECHO_RQ else "",
            dataset=bool(answer.data),
            error_id=answer.error_id,
        )
        pdus = [*dimse.p_data(message.context_id, command, self._longest, command=True)]
        if answer.data:
            pdus += dimse.p_data(message.context_id, answer.data, self._longest, command=False)
        self._send(*pdus)

    def _normalized(self, message: Message, field: int) -> NResponse:
        type_element = {dimse.N_ACTION_RQ: 0x1008, dimse.N_EVENT_REPORT_RQ: 0x1002}.get(field)
        return self._services.normalized(
            NRequest(
                command=field,
                class_uid=message.uid(_VALUE["class"], _VALUE["class_requested"]),
                instance_uid=message.uid(_VALUE["instance"], _VALUE["instance_requested"]),
                type_id=message.number(type_element) if type_element else 0,
                data=bytes(message.collected),
                transfer_syntax_uid=message.context.transfer_syntax,
                calling_ae_title=self._calling,
                address=self.address,
            )
        )

    # C-STORE

    def _begin_store(self, message: Message) -> None:
        uid, sop_class = message.uid(_VALUE["instance"]), message.uid(_VALUE["class"])
        if sop_class != message.context.abstract_syntax:
            message.refusal = status.SOP_CLASS_NOT_SUPPORTED
        elif not negotiation.UID.fullmatch(uid):
            message.refusal = status.INVALID_INSTANCE
        else:
            incoming = Incoming(sop_class, uid, message.context.transfer_syntax, self._calling, self.address, self.id)
            self._storing(message, lambda: self._open(message, incoming))
            return
        self._tell(f"C-STORE refused with 0x{message.refusal:04X}: its SOP Class or Instance UID cannot be taken")

    def _open(self, message: Message, incoming: Incoming) -> None:
        message.writer = self._services.store(incoming)

    def _storing(self, message: Message, work: Callable[[], None]) -> None:
        """Do a part of the storing; where the disk fails, the rest of the data set is let go by and refused."""
        try:
            work()
        except StorageError as error:
            self._tell(f"C-STORE refused: {error}")
            message.refusal = status.OUT_OF_RESOURCES
            if message.writer is not None:
                message.writer.close()
                message.writer = None

    def _store_piece(self, message: Message, piece: bytes | memoryview) -> None:
        if message.n_bytes > self._limits.instance_bytes:
            raise PeerError(f"an instance of more than {self._limits.instance_bytes} bytes")
        if not self._stage:
            self._stage = bytearray(_STAGE_BYTES)
        if self._staged + len(piece) > _STAGE_BYTES:
            self._flush(message)
        if len(piece) >= _STAGE_BYTES // 2:
            self._storing(message, lambda: self._write(message, piece))
        else:
            self._stage[self._staged : self._staged + len(piece)] = piece
            self._staged += len(piece)

    def _write(self, message: Message, data: bytes | memoryview) -> None:
        if message.writer is not None:
            message.writer.write(data)

    def _flush(self, message: Message) -> None:
        n_staged, self._staged = self._staged, 0
        if n_staged:
            self._storing(message, lambda: self._write(message, memoryview(self._stage)[:n_staged]))

    def _end_store(self, message: Message) -> NResponse:
        if message.refusal is None and message.writer is None:  # a command without a data set
            message.refusal = status.CANNOT_UNDERSTAND
        if message.writer is not None:
            self._storing(message, lambda: self._commit(message))
        if message.writer is not None:
            message.writer.close()
        return NResponse(message.refusal or status.SUCCESS)

    @staticmethod
    def _commit(message: Message) -> None:
        assert message.writer is not None
        message.refusal = message.writer.commit()

    def _drop_message(self) -> None:
        if self._message is not None and self._message.writer is not None:
            self._message.writer.close()
        self._message, self._staged = None, 0


SERVICES = frozenset({VERIFICATION, STORAGE_COMMITMENT, MPPS})
