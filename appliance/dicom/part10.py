# SPDX-License-Identifier: Apache-2.0
"""Part 10 files without decoding them: where the data set begins, by a bounded reader (PS3.10 7.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from appliance.buffer import ObjectError
from appliance.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, to_text

_PREAMBLE = 132  # 128 bytes and "DICM"
_GROUP_LENGTH = struct.Struct("<HH2sHI")  # (0002,0000) UL 4 bytes, Explicit VR Little Endian
_LONGEST_META = 65536


def header(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """Give what comes before a data set in a file: preamble, prefix and file meta information (PS3.10 7.1).

    It names nobody and no time, so that the same data set always makes the same file.
    """
    meta = _element(0x0001, b"OB", b"\0\1") + b"".join(
        _element(element, b"UI", uid.encode("ascii"))
        for element, uid in (
            *((0x0002, sop_class_uid), (0x0003, sop_instance_uid), (0x0010, transfer_syntax_uid)),
            (0x0012, IMPLEMENTATION_CLASS_UID),
        )
    )
    meta += _element(0x0013, b"SH", IMPLEMENTATION_VERSION_NAME.encode("ascii"))
    return bytes(128) + b"DICM" + _GROUP_LENGTH.pack(2, 0, b"UL", 4, len(meta)) + meta


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    value += (b" " if vr == b"SH" else b"\0") * (len(value) % 2)
    if vr == b"OB":
        return struct.pack("<HH2sxxI", 2, element, vr, len(value)) + value
    return struct.pack("<HH2sH", 2, element, vr, len(value)) + value


@dataclass(frozen=True)
class Parts:
    """A Part 10 file, taken apart."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    dataset: memoryview


def split(file: bytes | bytearray) -> Parts:
    """Take any Part 10 file apart, whoever wrote it. Raises ObjectError when it is none."""
    dataset = dataset_of(file)
    meta = memoryview(file)[_PREAMBLE : len(file) - len(dataset)]
    values: dict[int, str] = {}
    offset = 0
    while offset + 8 <= len(meta):
        group, element, vr, length = struct.unpack_from("<HH2sH", meta, offset)
        start = offset + 8
        if vr in (b"OB", b"UN", b"UT") and offset + 12 <= len(meta):
            (length,) = struct.unpack_from("<I", meta, offset + 8)
            start = offset + 12
        if group == 2:
            values[element] = to_text(bytes(meta[start : start + length]))
        offset = start + length
    if not {0x0002, 0x0003, 0x0010} <= values.keys():
        raise ObjectError("part10: the file meta information lacks a UID; the object is damaged")
    return Parts(values[0x0002], values[0x0003], values[0x0010], dataset)


def dataset_of(file: bytes | bytearray) -> memoryview:
    """Give the encoded data set of `file`, without copying. Raises ObjectError when it is no Part 10 file."""
    if len(file) < _PREAMBLE + _GROUP_LENGTH.size or file[128:132] != b"DICM":
        raise ObjectError("part10: no DICM prefix; the object is not a Part 10 file")
    group, element, vr, size, length = _GROUP_LENGTH.unpack_from(file, _PREAMBLE)
    start = _PREAMBLE + _GROUP_LENGTH.size + length
    if (group, element, vr, size) != (2, 0, b"UL", 4) or length > _LONGEST_META or start > len(file):
        raise ObjectError("part10: the file meta information does not begin with its length; the object is damaged")
    return memoryview(file)[start:]
