# SPDX-License-Identifier: Apache-2.0
"""Read the frames of a MetaImage sequence (.mha) of bytes, as PLUS writes them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def mha_frames(path: Path) -> Iterator[NDArray[np.float32]]:
    """Give float32 (y, x), one for each frame. Raises ValueError for anything but bytes in three dimensions."""
    head, found, data = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ", 1) for line in head.decode("latin-1").splitlines() if " = " in line)
    if not found or fields.get("ElementType") != "MET_UCHAR" or fields.get("NDims") != "3":
        raise ValueError(f"{path}: expected a sequence of MET_UCHAR frames")
    nx, ny, n_frames = map(int, fields["DimSize"].split())
    raw = zlib.decompress(data) if fields.get("CompressedData", "").strip() == "True" else data
    for frame in np.frombuffer(raw, np.uint8, n_frames * ny * nx).reshape(n_frames, ny, nx):
        yield frame.astype(np.float32)
