# SPDX-License-Identifier: Apache-2.0
"""MetaImage files (.mha): volumes, and the tracked sequences (.igs.mha) that PLUS writes.

Reference: https://itk.org/Wiki/MetaIO/Documentation; PLUS, "Sequence file".
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Affine, Array, read_only

_DTYPES = {"MET_UCHAR": "u1", "MET_SHORT": "<i2", "MET_USHORT": "<u2", "MET_FLOAT": "<f4"}
_DATA = b"ElementDataFile = LOCAL\n"
_FRAME = re.compile(r"Seq_Frame(\d+)_(\w+)")
_MOST_BYTES = 4 << 30


@dataclass(frozen=True, eq=False)
class MetaImage:
    """`array` is (z or frame, y, x), read-only; `spacing_mm` and `offset_mm` are (x, y, z) as the file says them.

    `frames` has the fields of each frame of a sequence, e.g. "ProbeToTrackerTransform", "Timestamp".
    """

    array: Array
    spacing_mm: tuple[float, ...]
    offset_mm: tuple[float, ...]
    frames: tuple[Mapping[str, str], ...]

    def transform(self, frame: int, name: str) -> Affine | None:
        """Return the (4, 4) transform `name` (e.g. "ProbeToTracker") of a frame; None where it is not valid."""
        fields = self.frames[frame]
        if fields.get(f"{name}TransformStatus") != "OK" or f"{name}Transform" not in fields:
            return None
        matrix = np.array(fields[f"{name}Transform"].split(), np.float64)
        if matrix.size != 16:
            raise ValueError(f"metaimage: frame {frame}: {name}Transform has {matrix.size} numbers, not 16")
        return matrix.reshape(4, 4)

    def transform_names(self) -> tuple[str, ...]:
        """Names of all transforms in the sequence, in the file's order."""
        names = [key[: -len("Transform")] for fields in self.frames for key in fields if key.endswith("Transform")]
        return tuple(dict.fromkeys(names))


def read_metaimage(data: bytes) -> MetaImage:
    """Return the image in `data`, a whole file.

    Raises
    ------
    ValueError
        No MetaImage of three dimensions with its pixels in the same file, or damaged, or over 4 GiB.
    """
    head, found, rest = data.partition(_DATA)
    fields = dict(line.split(" = ", 1) for line in head.decode("latin-1").splitlines() if " = " in line)
    dtype, size = _DTYPES.get(fields.get("ElementType", "")), fields.get("DimSize", "").split()
    if not found or dtype is None or len(size) != 3 or not all(number.isdigit() for number in size):
        raise ValueError(
            f"metaimage: expected three dimensions of {', '.join(_DTYPES)} in one file, got "
            f"{fields.get('ElementType')!r} {' '.join(size)!r}"
        )
    shape = tuple(int(number) for number in reversed(size))
    return MetaImage(
        read_only(_pixels(rest, np.dtype(dtype), shape, fields.get("CompressedData", "").strip() == "True")),
        _numbers(fields, "ElementSpacing", 1.0),
        _numbers(fields, "Offset", 0.0),
        _frames(fields, shape[0]),
    )


def _pixels(data: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...], compressed: bool) -> NDArray[np.generic]:
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > _MOST_BYTES:
        raise ValueError(f"metaimage: {shape} {dtype} is over 4 GiB")
    if compressed:
        try:
            data = zlib.decompressobj().decompress(data, n_bytes)
        except zlib.error as error:
            raise ValueError(f"metaimage: its pixels are damaged: {error}") from error
    if len(data) < n_bytes:
        raise ValueError(f"metaimage: {len(data)} bytes of pixels, {n_bytes} are meant to be there")
    return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape)


def _numbers(fields: Mapping[str, str], key: str, default: float) -> tuple[float, ...]:
    return tuple(float(number) for number in fields.get(key, "").split()) or (default,) * 3


def _frames(fields: Mapping[str, str], n_frames: int) -> tuple[Mapping[str, str], ...]:
    frames: list[dict[str, str]] = [{} for _ in range(n_frames)]
    for key, value in fields.items():
        found = _FRAME.fullmatch(key)
        if found and int(found[1]) < n_frames:
            frames[int(found[1])][found[2]] = value.strip()
    return tuple(frames) if any(frames) else ()
