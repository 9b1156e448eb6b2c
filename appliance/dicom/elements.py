# SPDX-License-Identifier: Apache-2.0
"""Where the elements of an encoded data set begin and end (PS3.5 7.1 and 7.5).

Rule: the header alone is read; that the value is there is for the caller to check.
"""

from __future__ import annotations

import struct

LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}  # PS3.5 7.1.2
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
UNDEFINED = 0xFFFFFFFF  # a length


def header(data: bytes | memoryview, offset: int, order: str, implicit: bool) -> tuple[bytes, int, int]:
    """Give (VR, start of the value, its length) of the element at `offset`; no VR where it is `implicit`. `order` is
    that of `struct`. Raises struct.error when the header is cut off."""
    if implicit:
        return b"", offset + 8, struct.unpack_from(f"{order}4xI", data, offset)[0]
    vr, length = struct.unpack_from(f"{order}4x2sH", data, offset)
    if vr in LONG:
        return vr, offset + 12, struct.unpack_from(f"{order}8xI", data, offset)[0]
    return vr, offset + 8, length
