# SPDX-License-Identifier: Apache-2.0
"""What a data set says it is, from its first bytes: SOP Class and Instance UID, without decoding anything else.

Rule: bounded by the bytes given; what cannot be told is None, and is no reason to refuse an instance.
"""

from __future__ import annotations

import struct

from appliance.dicom.negotiation import UID

_IMPLICIT = "1.2.840.10008.1.2"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 7.1.2
_CLASS, _INSTANCE = 0x0016, 0x0018


def uids_of(dataset: bytes | memoryview, transfer_syntax_uid: str) -> tuple[str, str] | None:
    """Give (SOP Class UID, SOP Instance UID) of the encoded data set that begins so; None: it does not say, or what it
    says is no UID (de-identification leaves such)."""
    found: dict[int, str] = {}
    order = ">" if transfer_syntax_uid == _BIG_ENDIAN else "<"
    offset = 0
    while len(found) < 2 and offset + 12 <= len(dataset):
        group, element = struct.unpack_from(f"{order}HH", dataset, offset)
        if group > 0x0008 or (group == 0x0008 and element > _INSTANCE):
            return None
        start, length = _value(dataset, offset, order, implicit=transfer_syntax_uid == _IMPLICIT)
        if length == 0xFFFFFFFF or start + length > len(dataset):
            return None
        if group == 0x0008 and element in (_CLASS, _INSTANCE):
            found[element] = bytes(dataset[start : start + length]).rstrip(b"\0 ").decode("ascii", "replace")
        offset = start + length
    if len(found) < 2 or not all(UID.fullmatch(uid) for uid in found.values()):
        return None
    return found[_CLASS], found[_INSTANCE]


def _value(dataset: bytes | memoryview, offset: int, order: str, *, implicit: bool) -> tuple[int, int]:
    """Give where the value of the element at `offset` begins and how long it is."""
    if implicit:
        return offset + 8, int(struct.unpack_from(f"{order}I", dataset, offset + 4)[0])
    if bytes(dataset[offset + 4 : offset + 6]) in _LONG:
        return offset + 12, int(struct.unpack_from(f"{order}I", dataset, offset + 8)[0])
    return offset + 8, int(struct.unpack_from(f"{order}H", dataset, offset + 6)[0])
