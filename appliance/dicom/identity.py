# SPDX-License-Identifier: Apache-2.0
"""What a data set says it is, from its first bytes: SOP Class and Instance UID, without decoding anything else.

Rule: bounded by the bytes given; what cannot be told is None, and is no reason to refuse an instance.
"""

from __future__ import annotations

import struct

from appliance.dicom.elements import UNDEFINED, header
from appliance.dicom.negotiation import UID
from appliance.dicom.uids import BIG_ENDIAN, IMPLICIT, to_text

_CLASS, _INSTANCE = 0x0016, 0x0018


def uids_of(dataset: bytes | memoryview, transfer_syntax_uid: str) -> tuple[str, str] | None:
    """Give (SOP Class UID, SOP Instance UID) of the encoded data set that begins so; None: it does not say, or what it
    says is no UID (de-identification leaves such)."""
    found: dict[int, str] = {}
    order = ">" if transfer_syntax_uid == BIG_ENDIAN else "<"
    offset = 0
    while len(found) < 2 and offset + 12 <= len(dataset):
        group, element = struct.unpack_from(f"{order}HH", dataset, offset)
        if group > 0x0008 or (group == 0x0008 and element > _INSTANCE):
            return None
        _, start, length = header(dataset, offset, order, transfer_syntax_uid == IMPLICIT)
        if length == UNDEFINED or start + length > len(dataset):
            return None
        if group == 0x0008 and element in (_CLASS, _INSTANCE):
            found[element] = to_text(bytes(dataset[start : start + length]))
        offset = start + length
    if len(found) < 2 or not all(UID.fullmatch(uid) for uid in found.values()):
        return None
    return found[_CLASS], found[_INSTANCE]
