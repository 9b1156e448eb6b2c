# SPDX-License-Identifier: Apache-2.0
"""Data sets of storage commitment, read and written (PS3.4 annex J).

Rule: pure, and without recursion: a data set is walked through once, whatever it is nested in.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from appliance.dicom.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, header
from appliance.dicom.uids import IMPLICIT, to_bytes, to_text
from appliance.errors import PeerError

INSTANCE = "1.2.840.10008.1.20.1.1"  # well known
REQUEST = 1  # action type
ALL, SOME = 1, 2  # event types: all are committed; failures exist
NO_SUCH_INSTANCE, CLASS_CONFLICT, OTHER_FAILURE = 0x0112, 0x0119, 0x0110

_TRANSACTION, _FAILED, _REFERENCED = 0x00081195, 0x00081198, 0x00081199
_CLASS, _UID, _REASON = 0x00081150, 0x00081155, 0x00081197


@dataclass(frozen=True)
class Commitment:
    """A request, or a report."""

    transaction_uid: str
    instances: tuple[tuple[str, str], ...]  # (SOP class, SOP instance): asked for, or committed
    failed: Mapping[str, int] = field(default_factory=dict)  # reason by SOP instance


def walk(data: bytes, transfer_syntax_uid: str, sequences: Container[int]) -> Iterator[tuple[int, bytes]]:
    """Give every element and item header of a little-endian data set in order, flat, what is in `sequences` too
    (implicit VR does not say what is one). Raises PeerError."""
    offset, implicit = 0, transfer_syntax_uid == IMPLICIT
    while offset < len(data):
        if len(data) - offset < 8:
            raise PeerError("a data set ends inside an element")
        group, number = struct.unpack_from("<HH", data, offset)
        tag = group << 16 | number
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            yield tag, b""
            offset += 8
            continue
        vr, start, length = _header(data, offset, implicit)
        if vr == b"SQ" or length == UNDEFINED or tag in sequences:
            yield tag, b""
            offset = start  # into it
            continue
        if start + length > len(data):
            raise PeerError(f"({group:04X},{number:04X}) is cut off")
        yield tag, data[start : start + length]
        offset = start + length


def _header(data: bytes, offset: int, implicit: bool) -> tuple[bytes, int, int]:
    try:
        return header(data, offset, "<", implicit)
    except struct.error as error:
        raise PeerError("a data set ends inside an element") from error


def read(data: bytes, transfer_syntax_uid: str) -> Commitment:
    """Read a request or a report. Raises PeerError."""
    transaction, items = "", dict[int, list[dict[int, bytes]]]()
    current: list[dict[int, bytes]] = []
    for tag, value in walk(data, transfer_syntax_uid, (_FAILED, _REFERENCED)):
        if tag == _TRANSACTION:
            transaction = to_text(value)
        elif tag in (_FAILED, _REFERENCED):
            current = items.setdefault(tag, [])
        elif tag == ITEM:
            current.append({})
        elif current:
            current[-1][tag] = value
    if not transaction:
        raise PeerError("a storage commitment without a transaction UID")
    good = tuple((to_text(item.get(_CLASS, b"")), to_text(item.get(_UID, b""))) for item in items.get(_REFERENCED, ()))
    failed = {
        to_text(item.get(_UID, b"")): int.from_bytes(item.get(_REASON, b"")[:2], "little")
        for item in items.get(_FAILED, ())
    }
    return Commitment(transaction, good, failed)


def read_json(body: bytes) -> tuple[tuple[str, str], ...]:
    """Read the (SOP class, SOP instance) that a request in DICOM JSON names. Raises PeerError."""
    try:
        items = json.loads(body)["00081199"]["Value"]
        return tuple((str(item["00081150"]["Value"][0]), str(item["00081155"]["Value"][0])) for item in items)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise PeerError("a storage commitment request needs a Referenced SOP Sequence (0008,1199)") from error


def write(commitment: Commitment, classes: Mapping[str, str], transfer_syntax_uid: str = IMPLICIT) -> bytes:
    """Encode a request or a report; `classes` gives the SOP class of what failed."""
    explicit = transfer_syntax_uid != IMPLICIT
    data = element(_TRANSACTION, b"UI", to_bytes(commitment.transaction_uid), explicit)
    if commitment.failed:
        items = [
            _reference(classes.get(uid, ""), uid, explicit)
            + element(_REASON, b"US", struct.pack("<H", reason), explicit)
            for uid, reason in commitment.failed.items()
        ]
        # (0008,1197) comes after (0008,1155): the items are in the order of their tags
        data += _sequence(_FAILED, items, explicit)
    if commitment.instances:
        data += _sequence(_REFERENCED, [_reference(*one, explicit) for one in commitment.instances], explicit)
    return data


def _reference(sop_class_uid: str, uid: str, explicit: bool) -> bytes:
    return element(_CLASS, b"UI", to_bytes(sop_class_uid), explicit) + element(_UID, b"UI", to_bytes(uid), explicit)


def element(tag: int, vr: bytes, value: bytes, explicit: bool) -> bytes:
    """Encode one element with a short length."""
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    return head + (vr + struct.pack("<H", len(value)) if explicit else struct.pack("<I", len(value))) + value


def _sequence(tag: int, items: Sequence[bytes], explicit: bool) -> bytes:
    body = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in items)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    return head + (b"SQ\0\0" if explicit else b"") + struct.pack("<I", len(body)) + body
