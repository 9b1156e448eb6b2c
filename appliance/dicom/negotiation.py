# SPDX-License-Identifier: Apache-2.0
"""Associations as they are asked for, agreed to and refused (PS3.8 9.3.2 to 9.3.4 and annex D, PS3.7 annex D.3).

Rule: no sockets, and bytes that cannot be read are a PeerError. Decoded here and not by a library: what comes before a
peer is known must cost nothing and raise nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from appliance.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, STORAGE_COMMITMENT, to_text
from appliance.errors import PeerError

LONGEST_PDU = 1 << 18  # what we offer to receive
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"}  # inflate without a bound: never taken
UID = re.compile(r"[0-9.]{1,64}")  # as strict as paths and logs need; an image is not refused for a leading zero

ACCEPTED, NO_SERVICE, NO_SYNTAX = 0, 3, 4  # PS3.8 table 9-18
_PERMANENT, _TRANSIENT = 1, 2

_APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"
_STANDARD = "1.2.840.10008."
_STORAGE = (
    *("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.5.1.4.38.1", "1.2.840.10008.5.1.4.39.1"),
    *("1.2.840.10008.5.1.4.43.1", "1.2.840.10008.5.1.4.44.1", "1.2.840.10008.5.1.4.45.1"),
)
# Item types, PS3.8 9.3.2 and 9.3.3, PS3.7 D.3.3
_APPLICATION, _PROPOSED, _AGREED, _ABSTRACT, _TRANSFER, _USER = 0x10, 0x20, 0x21, 0x30, 0x40, 0x50
_LENGTH, _CLASS, _ROLE, _VERSION = 0x51, 0x52, 0x54, 0x55


@dataclass(frozen=True)
class Context:
    """One presentation context as agreed."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True)
class Proposal:
    """One presentation context as proposed."""

    context_id: int
    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """An A-ASSOCIATE-RQ, as far as it concerns us."""

    calling_ae_title: str
    called_ae_title: str
    titles: bytes = field(repr=False)  # both as they came: the answer repeats them
    longest_pdu: int  # what the peer takes; 0: no limit
    proposals: tuple[Proposal, ...]
    roles: tuple[tuple[str, int, int], ...]  # SOP class, SCU, SCP


def is_storage(abstract_syntax: str) -> bool:
    """Whether it is a storage SOP class: the standard's, or any private one."""
    ours = abstract_syntax.startswith(_STORAGE) or not abstract_syntax.startswith(_STANDARD)
    return ours and UID.fullmatch(abstract_syntax) is not None


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split into (item type, value)."""
    offset = 0
    while offset < len(data):
        if len(data) - offset < 4:
            raise PeerError("the A-ASSOCIATE PDU cannot be read: it ends inside an item")
        kind, length = struct.unpack_from(">BxH", data, offset)
        if length > len(data) - offset - 4:
            raise PeerError(f"the A-ASSOCIATE PDU cannot be read: an item of {length} bytes")
        yield kind, data[offset + 4 : offset + 4 + length]
        offset += 4 + length


def _text(value: bytes) -> str:
    return to_text(value).strip()


def read_request(pdu: bytes | memoryview) -> Request:
    """Decode an A-ASSOCIATE-RQ (PS3.8 9.3.2). Raises PeerError."""
    raw = bytes(pdu)
    if len(raw) < 74:
        raise PeerError("the A-ASSOCIATE-RQ cannot be read: it is too short")
    if not int.from_bytes(raw[6:8], "big") & 1:
        raise PeerError("the A-ASSOCIATE-RQ is of another protocol version")
    proposals, user = [], b""
    for kind, value in _items(raw[74:]):
        if kind == _PROPOSED:
            proposals.append(_proposal(value))
        elif kind == _USER:
            user = value
    if len({one.context_id for one in proposals}) != len(proposals) or not proposals:
        raise PeerError("the A-ASSOCIATE-RQ has no presentation context, or one twice")
    longest, roles = _user(user)
    return Request(_text(raw[26:42]), _text(raw[10:26]), raw[10:42], longest, tuple(proposals), roles)


def _proposal(value: bytes) -> Proposal:
    if len(value) < 4 or not value[0] & 1:
        raise PeerError("the A-ASSOCIATE-RQ cannot be read: a presentation context without an odd number")
    items = [(kind, _text(uid)) for kind, uid in _items(value[4:])]
    abstract = [uid for kind, uid in items if kind == _ABSTRACT]
    syntaxes = tuple(uid for kind, uid in items if kind == _TRANSFER)
    if len(abstract) != 1 or not syntaxes:
        raise PeerError("the A-ASSOCIATE-RQ cannot be read: a presentation context without its syntaxes")
    return Proposal(value[0], abstract[0], syntaxes)


def _user(value: bytes) -> tuple[int, tuple[tuple[str, int, int], ...]]:
    """Give the longest PDU and the roles of the user information (PS3.8 annex D, PS3.7 D.3.3.4)."""
    longest, roles = None, []
    for kind, item in _items(value):
        if kind == _LENGTH and len(item) == 4:
            longest = int.from_bytes(item, "big")
        elif kind == _ROLE and len(item) >= 4:
            n_uid = int.from_bytes(item[:2], "big")
            if len(item) == n_uid + 4:
                roles.append((_text(item[2:-2]), item[-2], item[-1]))
    if longest is None:
        raise PeerError("the A-ASSOCIATE-RQ lacks its maximum length")  # mandatory, PS3.8 D.1
    if 0 < longest < 7:
        raise PeerError(f"the peer takes PDUs of at most {longest} bytes")
    return longest, tuple(roles)


def agree(asked: Request, services: frozenset[str]) -> tuple[bytes, dict[int, Context]]:
    """Give the A-ASSOCIATE-AC and the contexts in it: storage, and the abstract syntaxes in `services`."""
    contexts: dict[int, Context] = {}
    answers = b""
    for one in asked.proposals:
        chosen = next((uid for uid in one.transfer_syntaxes if uid not in DEFLATED and UID.fullmatch(uid)), None)
        known = one.abstract_syntax in services or is_storage(one.abstract_syntax)
        result = NO_SERVICE if not known else ACCEPTED if chosen else NO_SYNTAX
        if known and chosen:
            contexts[one.context_id] = Context(one.abstract_syntax, chosen)
        syntax = _item(_TRANSFER, (chosen or one.transfer_syntaxes[0]).encode("ascii", "replace"))
        answers += _item(_AGREED, struct.pack(">BxBx", one.context_id, result) + syntax)
    accepted = {context.abstract_syntax for context in contexts.values()}
    user = (
        _item(_LENGTH, struct.pack(">I", LONGEST_PDU))
        + _item(_CLASS, IMPLEMENTATION_CLASS_UID.encode())
        + b"".join(_item(_ROLE, _role(*role)) for role in asked.roles if role[0] in accepted)
        + _item(_VERSION, IMPLEMENTATION_VERSION_NAME.encode())
    )
    body = struct.pack(">H2x", 1) + asked.titles + bytes(32) + _item(_APPLICATION, _APPLICATION_CONTEXT.encode())
    body += answers + _item(_USER, user)
    return struct.pack(">BxI", 2, len(body)) + body, contexts


def _item(kind: int, value: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(value)) + value


def _role(sop_class_uid: str, scu: int, scp: int) -> bytes:
    """A peer may be SCP of storage commitment to us (it brings a report), and SCU of everything we take."""
    uid = sop_class_uid.encode("ascii", "replace")
    return struct.pack(">H", len(uid)) + uid + bytes([scu & 1, scp & 1 if sop_class_uid == STORAGE_COMMITMENT else 0])


def request(
    calling: str, called: str, contexts: Sequence[tuple[str, str]], roles: Sequence[tuple[str, int, int]] = ()
) -> bytes:
    """Encode an A-ASSOCIATE-RQ for `contexts` (abstract syntax, transfer syntax), numbered 1, 3, 5, …; `roles` as in
    `Request`."""
    titles = called.encode("ascii").ljust(16) + calling.encode("ascii").ljust(16)
    proposals = b"".join(
        _item(
            _PROPOSED,
            struct.pack(">Bxxx", 2 * index + 1)
            + _item(_ABSTRACT, abstract.encode("ascii"))
            + _item(_TRANSFER, transfer.encode("ascii")),
        )
        for index, (abstract, transfer) in enumerate(contexts)
    )
    user = (
        _item(_LENGTH, struct.pack(">I", LONGEST_PDU))
        + _item(_CLASS, IMPLEMENTATION_CLASS_UID.encode())
        + b"".join(
            _item(_ROLE, struct.pack(">H", len(uid)) + uid.encode() + bytes([scu, scp])) for uid, scu, scp in roles
        )
        + _item(_VERSION, IMPLEMENTATION_VERSION_NAME.encode())
    )
    body = struct.pack(">H2x", 1) + titles + bytes(32) + _item(_APPLICATION, _APPLICATION_CONTEXT.encode())
    body += proposals + _item(_USER, user)
    return struct.pack(">BxI", 1, len(body)) + body


def accepted(pdu: bytes) -> tuple[dict[int, str], int]:
    """Decode an A-ASSOCIATE-AC: transfer syntax by accepted context, and the longest P-DATA the peer takes."""
    contexts: dict[int, str] = {}
    longest = None
    for kind, value in _items(pdu[74:]):
        if kind == _AGREED and len(value) >= 4 and value[2] == ACCEPTED:
            contexts[value[0]] = "".join(_text(uid) for inner, uid in _items(value[4:]) if inner == _TRANSFER)
        elif kind == _USER:
            found = [int.from_bytes(item, "big") for inner, item in _items(value) if inner == _LENGTH]
            longest = found[0] if found else None
    if longest is None:
        raise PeerError("the A-ASSOCIATE-AC lacks its maximum length")  # mandatory, PS3.8 D.1
    return contexts, longest


_RESULTS = {1: "permanently", 2: "for now"}
_REASONS = {  # by source and reason, PS3.8 table 9-21
    (1, 1): "no reason given",
    (1, 2): "application context not supported",
    (1, 3): "calling AE title not recognised",
    (1, 7): "called AE title not recognised",
    (2, 1): "no reason given",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}


def rejection(pdu: bytes) -> str:
    """Decode an A-ASSOCIATE-RJ to words."""
    if len(pdu) < 10:
        return "no reason that can be read"
    result, source, reason = pdu[7:10]
    return f"{_RESULTS.get(result, 'rejected')}: {_REASONS.get((source, reason), f'source {source}, reason {reason}')}"


def reject(reason: int, *, source: int = 1, transient: bool = False) -> bytes:
    """Encode an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""
    return struct.pack(">BxIxBBB", 3, 4, _TRANSIENT if transient else _PERMANENT, source, reason)
