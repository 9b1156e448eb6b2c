# SPDX-License-Identifier: Apache-2.0
"""Command sets (PS3.7 9.3, 10.3), and the PDUs that carry them and that end an association (PS3.8 9.3.5 to 9.3.8).

Rule: bytes in, bytes out; no sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from appliance.dicom.uids import VERIFICATION, to_bytes
from appliance.errors import PeerError

ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
C_STORE_RQ, C_FIND_RQ, C_ECHO_RQ, C_CANCEL_RQ, RESPONSE = 0x0001, 0x0020, 0x0030, 0x0FFF, 0x8000
N_EVENT_REPORT_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ = 0x0100, 0x0120, 0x0130, 0x0140
NORMALIZED = {N_EVENT_REPORT_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ}
NO_DATASET = 0x0101

RELEASE_RQ_PDU = struct.pack(">BxI4x", RELEASE_RQ, 4)
RELEASE_RP_PDU = struct.pack(">BxI4x", RELEASE_RP, 4)
ABORT_PDU = struct.pack(">BxI4x", ABORT, 4)  # by the service user
PROVIDER_ABORT_PDU = struct.pack(">BxI2xBx", ABORT, 4, 2)  # without a reason, PS3.8 table 9-26

_DATASET = 0x0001
_MEDIUM = 0x0000
_COMMAND, _LAST = 1, 2  # message control header, PS3.8 annex E
_LARGEST_FRAGMENT = 1 << 20  # where the peer sets no limit


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _us(element: int, value: int) -> bytes:
    return _element(element, struct.pack("<H", value))


def _ui(element: int, uid: str) -> bytes:
    return _element(element, to_bytes(uid))


def _command(elements: bytes) -> bytes:
    return _element(0x0000, struct.pack("<I", len(elements))) + elements


def echo_rq(message_id: int) -> bytes:
    """Encode a C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _command(
        _ui(0x0002, VERIFICATION) + _us(0x0100, C_ECHO_RQ) + _us(0x0110, message_id) + _us(0x0800, NO_DATASET)
    )


def store_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str) -> bytes:
    """Encode a C-STORE-RQ (PS3.7 9.3.1.1)."""
    return _command(
        _ui(0x0002, sop_class_uid)
        + _us(0x0100, C_STORE_RQ)
        + _us(0x0110, message_id)
        + _us(0x0700, _MEDIUM)
        + _us(0x0800, _DATASET)
        + _ui(0x1000, sop_instance_uid)
    )


def find_rq(message_id: int, sop_class_uid: str) -> bytes:
    """Encode a C-FIND-RQ (PS3.7 9.3.2.1)."""
    return _command(
        _ui(0x0002, sop_class_uid)
        + _us(0x0100, C_FIND_RQ)
        + _us(0x0110, message_id)
        + _us(0x0700, _MEDIUM)
        + _us(0x0800, _DATASET)
    )


def n_action_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str, action: int) -> bytes:
    """Encode an N-ACTION-RQ with a data set (PS3.7 10.3.4.1)."""
    return _command(
        _ui(0x0003, sop_class_uid)
        + _us(0x0100, N_ACTION_RQ)
        + _us(0x0110, message_id)
        + _us(0x0800, _DATASET)
        + _ui(0x1001, sop_instance_uid)
        + _us(0x1008, action)
    )


def n_event_report_rq(message_id: int, sop_class_uid: str, sop_instance_uid: str, event: int) -> bytes:
    """Encode an N-EVENT-REPORT-RQ with a data set (PS3.7 10.3.1.1)."""
    return _command(
        _ui(0x0002, sop_class_uid)
        + _us(0x0100, N_EVENT_REPORT_RQ)
        + _us(0x0110, message_id)
        + _us(0x0800, _DATASET)
        + _ui(0x1000, sop_instance_uid)
        + _us(0x1002, event)
    )


def response(
    request: int, message_id: int, status: int, sop_class_uid: str, sop_instance_uid: str,
    *, dataset: bool = False, error_id: int = 0,
) -> bytes:  # fmt: skip
    """Encode the response to any request (PS3.7 9.3 and 10.3); empty UIDs, and no error id, are left out."""
    return _command(
        (_ui(0x0002, sop_class_uid) if sop_class_uid else b"")
        + _us(0x0100, request | RESPONSE)
        + _us(0x0120, message_id)
        + _us(0x0800, _DATASET if dataset else NO_DATASET)
        + _us(0x0900, status)
        + (_us(0x0903, error_id) if error_id else b"")
        + (_ui(0x1000, sop_instance_uid) if sop_instance_uid else b"")
    )


def read_command(command: bytes) -> dict[int, bytes]:
    """Give a command set's values by element number. Raises PeerError."""
    values, offset = {}, 0
    while offset < len(command):
        if len(command) - offset < 8:
            raise PeerError("a command set ends inside an element")
        group, element, length = struct.unpack_from("<HHI", command, offset)
        offset += 8
        if group != 0 or length > len(command) - offset:
            raise PeerError(f"a command set holds ({group:04X},{element:04X}) of {length} bytes")
        values[element] = command[offset : offset + length]
        offset += length
    return values


def response_status(command: bytes, request: int, message_id: int) -> int:
    """Give the status of the response to `request`. Raises PeerError when it is another message."""
    values = read_command(command)
    numbers = []
    for element in (0x0100, 0x0120, 0x0900):
        if len(values.get(element, b"")) != 2:
            raise PeerError(f"a response lacks (0000,{element:04X})")
        numbers.append(int.from_bytes(values[element], "little"))
    if numbers[:2] != [request | RESPONSE, message_id]:
        raise PeerError(f"expected the response 0x{request | RESPONSE:04X} to message {message_id}, got {numbers[:2]}")
    return numbers[2]


def p_data(context_id: int, data: bytes | memoryview, longest: int, *, command: bool) -> Iterator[bytes | memoryview]:
    """Give `data` as P-DATA-TF PDUs of at most `longest` bytes (0: no limit), headers and pieces in turn."""
    fragment = min(longest - 6, _LARGEST_FRAGMENT) if longest else _LARGEST_FRAGMENT
    if fragment < 1:
        raise PeerError(f"the peer takes PDUs of at most {longest} bytes")
    view = memoryview(data)
    for offset in range(0, max(len(view), 1), fragment):
        piece = view[offset : offset + fragment]
        control = (_COMMAND if command else 0) | (_LAST if offset + fragment >= len(view) else 0)
        yield struct.pack(">BxIIBB", P_DATA, len(piece) + 6, len(piece) + 2, context_id, control)
        yield piece


def fragments(body: bytes | memoryview) -> Iterator[tuple[int, bool, bool, bytes | memoryview]]:
    """Split a P-DATA-TF body into (context, is command, is last, bytes). Raises PeerError."""
    offset = 0
    while offset < len(body):
        if len(body) - offset < 6:
            raise PeerError("a P-DATA-TF ends inside a value")
        length, context_id, control = struct.unpack_from(">IBB", body, offset)
        if length < 2 or length > len(body) - offset - 4:
            raise PeerError(f"a P-DATA-TF holds a value of {length} bytes")
        yield context_id, bool(control & _COMMAND), bool(control & _LAST), body[offset + 6 : offset + 4 + length]
        offset += 4 + length
