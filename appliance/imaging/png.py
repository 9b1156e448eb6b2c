# SPDX-License-Identifier: Apache-2.0
"""Grey images as PNG, for browsers."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_LEVEL = 1  # of compression: the line is short, the processor is busy


def png(grey: NDArray[np.uint8]) -> bytes:
    """Return an image (y, x) uint8 as an 8-bit grey PNG (ISO/IEC 15948)."""
    height, width = grey.shape
    rows = np.zeros((height, 1 + width), np.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = grey
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), _LEVEL)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
