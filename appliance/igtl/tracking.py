# SPDX-License-Identifier: Apache-2.0
"""TRANSFORM, POSITION, TDATA and QTDATA: where tools are. All exactly as on the wire (RAS, mm).

None of these messages says between which spaces it maps, or whether it is rigid: see `rigid`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.frames import Affine
from appliance.igtl.words import name_bytes, read_name

_MATRIX = struct.Struct(">12f")  # the columns of the upper three rows
_TOOL = struct.Struct(">20sBx12f")
_QUATERNION_TOOL = struct.Struct(">20sBx7f")
_POSITION = {size: struct.Struct(f">{size // 4}f") for size in (12, 24, 28)}
TRACKER, TOOL_6D, TOOL_3D, TOOL_5D = 1, 2, 3, 4

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Transform:
    """TRANSFORM: a (4, 4) matrix exactly as on the wire; the message does not say between which spaces."""

    matrix: Affine


@dataclass(frozen=True, eq=False)
class Position:
    """POSITION: `position` (3,) in mm and the unit `quaternion` (4,), x, y, z, w. (0, 0, 0, 1) where none is sent."""

    position: Vector
    quaternion: Vector


@dataclass(frozen=True, eq=False)
class Tool:
    """One tool of TDATA; `kind` is TRACKER, TOOL_6D, TOOL_3D (the tip only) or TOOL_5D (tip and axis)."""

    name: str
    matrix: Affine
    kind: int = TOOL_6D


@dataclass(frozen=True, eq=False)
class TrackingData:
    """TDATA."""

    tools: tuple[Tool, ...]


@dataclass(frozen=True, eq=False)
class QuaternionTool:
    """One tool of QTDATA: `position` (3,) in mm, `quaternion` (4,), x, y, z, w."""

    name: str
    position: Vector
    quaternion: Vector
    kind: int = TOOL_6D


@dataclass(frozen=True, eq=False)
class QuaternionData:
    """QTDATA."""

    tools: tuple[QuaternionTool, ...]


def _columns(matrix: Affine) -> list[float]:
    # Plain numbers: at 50 poses a second the caches are cold each time, and every call of numpy costs 20 us and more.
    x, y, z, *_ = matrix.tolist()
    return [x[0], y[0], z[0], x[1], y[1], z[1], x[2], y[2], z[2], x[3], y[3], z[3]]


def _matrix(c: Sequence[float]) -> Affine:
    rows = (c[0], c[3], c[6], c[9]), (c[1], c[4], c[7], c[10]), (c[2], c[5], c[8], c[11]), (0.0, 0.0, 0.0, 1.0)
    return np.array(rows)


def write_transform(transform: Transform) -> tuple[bytes, ...]:
    """Return the content of TRANSFORM in parts."""
    return (_MATRIX.pack(*_columns(transform.matrix)),)


def read_transform(content: memoryview) -> Transform:
    """Return what the content of TRANSFORM says."""
    return Transform(_matrix(_MATRIX.unpack(content)))


def write_position(position: Position) -> tuple[bytes, ...]:
    """Return the content of POSITION in parts."""
    return (_POSITION[28].pack(*position.position, *position.quaternion),)


def read_position(content: memoryview) -> Position:
    """Return what the content of POSITION says."""
    layout = _POSITION.get(len(content))
    if layout is None:
        raise PeerError(f"igtl: POSITION of {len(content)} bytes, not 12, 24 or 28; mend the sender")
    numbers = np.array(layout.unpack(content))
    quaternion = np.array([0.0, 0.0, 0.0, 1.0]) if len(numbers) == 3 else numbers[3:]
    if len(quaternion) == 3:  # the fourth follows from the norm
        quaternion = np.append(quaternion, np.sqrt(max(0.0, 1.0 - float(quaternion @ quaternion))))
    return Position(numbers[:3], quaternion)


def write_tracking(data: TrackingData) -> tuple[bytes, ...]:
    """Return the content of TDATA in parts."""
    return tuple(_TOOL.pack(name_bytes(tool.name), tool.kind, *_columns(tool.matrix)) for tool in data.tools)


def read_tracking(content: memoryview) -> TrackingData:
    """Return what the content of TDATA says."""
    return TrackingData(
        tuple(Tool(read_name(name), _matrix(columns), kind) for name, kind, *columns in _TOOL.iter_unpack(content))
    )


def write_quaternions(data: QuaternionData) -> tuple[bytes, ...]:
    """Return the content of QTDATA in parts."""
    return tuple(
        _QUATERNION_TOOL.pack(name_bytes(tool.name), tool.kind, *tool.position, *tool.quaternion) for tool in data.tools
    )


def read_quaternions(content: memoryview) -> QuaternionData:
    """Return what the content of QTDATA says."""
    return QuaternionData(
        tuple(
            QuaternionTool(read_name(name), np.array(numbers[:3]), np.array(numbers[3:]), kind)
            for name, kind, *numbers in _QUATERNION_TOOL.iter_unpack(content)
        )
    )
