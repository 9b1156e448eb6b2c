# SPDX-License-Identifier: Apache-2.0
"""A volume on the live bus, topic "volume": what its JSON header says, and its voxels.

Rule: no sockets here. The header is read by another process, and so is checked as a peer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.frames import Affine, Array, Mark, read_only

TOPIC = "volume"
MOST_VOXELS = 256 << 20
_DTYPES = ("uint8", "int16")


@dataclass(frozen=True, eq=False, kw_only=True)
class Volume:
    """One state of a volume that is being assembled.

    `array` is (z, y, x), uint8 or int16, C-contiguous, read-only; `affine` maps the voxel index (x, y, z, 1) to the
    centre of that voxel in LPS mm (of the reference frame where it is tracked). Value x `slope` + `intercept` is HU
    or grey. `value_range` (low, high) is where the stored values lie that are worth showing.
    `version` counts up within a scan, `complete` says that the scan has ended and nothing more comes.
    `acquired_ns` (UTC) and `received_ns` (CLOCK_MONOTONIC) are those of the newest frame in it.
    `filled` is the part of the voxels that have a measured value, 0 to 1; others hold the lowest value of `dtype`
    for int16 and 0 for uint8.
    """

    pipeline: str
    scan_id: str
    modality: str
    array: Array
    affine: Affine
    value_range: tuple[float, float]
    acquired_ns: int
    received_ns: int
    version: int
    complete: bool = False
    slope: float = 1.0
    intercept: float = 0.0
    filled: float = 1.0
    marks: tuple[Mark, ...] = ()


def pack(volume: Volume) -> tuple[dict[str, Any], Array]:
    """Return (header, payload) for `bus.Publisher.publish`; the payload is the array itself, not copied.

    Raises ValueError where `unpack` would refuse it.
    """
    array = volume.array
    header = {
        "pipeline": volume.pipeline,
        "scan_id": volume.scan_id,
        "modality": volume.modality,
        "version": volume.version,
        "complete": volume.complete,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "affine": np.asarray(volume.affine, np.float64).ravel().tolist(),
        "value_range": list(volume.value_range),
        "slope": volume.slope,
        "intercept": volume.intercept,
        "acquired_ns": volume.acquired_ns,
        "received_ns": volume.received_ns,
        "filled": volume.filled,
        "marks": [{"stage": mark.stage, "reason": mark.reason} for mark in volume.marks],
    }
    _check(header, array.nbytes)
    if not array.flags.c_contiguous:
        raise ValueError("volume message: the array is not C-contiguous; copy it before")
    return header, array


def unpack(header: Mapping[str, Any], payload: bytes | memoryview) -> Volume:
    """Return the volume; its array is a read-only view of `payload`.

    Raises ValueError where the header lacks something, contradicts the payload or asks for too much.
    """
    _check(header, len(payload))
    low, high = header["value_range"]
    return Volume(
        pipeline=str(header["pipeline"]),
        scan_id=str(header["scan_id"]),
        modality=str(header["modality"]),
        array=read_only(np.frombuffer(payload, header["dtype"]).reshape(header["shape"])),
        affine=np.array(header["affine"], np.float64).reshape(4, 4),
        value_range=(float(low), float(high)),
        acquired_ns=int(header["acquired_ns"]),
        received_ns=int(header["received_ns"]),
        version=int(header["version"]),
        complete=bool(header["complete"]),
        slope=float(header["slope"]),
        intercept=float(header["intercept"]),
        filled=float(header["filled"]),
        marks=tuple(Mark(str(mark["stage"]), str(mark["reason"])) for mark in header["marks"]),
    )


def _check(header: Mapping[str, Any], n_bytes: int) -> None:
    """Raise ValueError unless all keys are there and say what can be."""
    missing = [key for key in Volume.__dataclass_fields__ if key != "array" and key not in header]
    missing += [key for key in ("dtype", "shape") if key not in header]
    if missing:
        raise ValueError(f"volume message: the header lacks {', '.join(missing)}; mend the sender")
    dtype, shape = header["dtype"], header["shape"]
    whole = isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape)
    if dtype not in _DTYPES or not whole or math.prod(shape) > MOST_VOXELS:
        raise ValueError(
            f"volume message: {dtype!r} of shape {shape!r}; uint8 or int16 (z, y, x) of at most {MOST_VOXELS} voxels "
            "are taken"
        )
    if math.prod(shape) * np.dtype(dtype).itemsize != n_bytes:
        raise ValueError(f"volume message: {dtype} {shape} with {n_bytes} bytes; mend the sender")
    affine = np.array(header["affine"], np.float64)
    if affine.size != 16 or not np.isfinite(affine).all() or abs(np.linalg.det(affine.reshape(4, 4))) < 1e-12:
        raise ValueError(f"volume message: the affine {header['affine']!r} is no map to LPS mm; mend the sender")
