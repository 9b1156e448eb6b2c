# SPDX-License-Identifier: Apache-2.0
"""Part 10 files without decoding them: where the data set begins, by a bounded reader (PS3.10 7.1)."""

from __future__ import annotations

import struct

from appliance.buffer import ObjectError

_PREAMBLE = 132  # 128 bytes and "DICM"
_GROUP_LENGTH = struct.Struct("<HH2sHI")  # (0002,0000) UL 4 bytes, Explicit VR Little Endian
_LONGEST_META = 65536


def dataset_of(file: bytes | bytearray) -> memoryview:
    """Give the encoded data set of `file`, without copying. Raises ObjectError when it is no Part 10 file."""
    if len(file) < _PREAMBLE + _GROUP_LENGTH.size or file[128:132] != b"DICM":
        raise ObjectError("part10: no DICM prefix; the object is not a Part 10 file")
    group, element, vr, size, length = _GROUP_LENGTH.unpack_from(file, _PREAMBLE)
    start = _PREAMBLE + _GROUP_LENGTH.size + length
    if (group, element, vr, size) != (2, 0, b"UL", 4) or length > _LONGEST_META or start > len(file):
        raise ObjectError("part10: the file meta information does not begin with its length; the object is damaged")
    return memoryview(file)[start:]
