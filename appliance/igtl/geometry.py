# SPDX-License-Identifier: Apache-2.0
"""POINT, TRAJ and POLYDATA: landmarks, planned paths and surfaces, as on the wire (RAS, mm)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.igtl.words import name_bytes, read_name

_POINT = struct.Struct(">64s32s4B4f20s")
_TRAJECTORY = struct.Struct(">64s32sbx4B7f20s")
_POLYDATA = struct.Struct(">10I")
_ATTRIBUTE = struct.Struct(">BBI")
_MOST_UNEVEN_CELLS = 1 << 20  # cells of different sizes have to be walked through one by one
NO_POINT = 0xFFFFFFFF
Xyz = tuple[float, float, float]
Rgba = tuple[int, int, int, int]


@dataclass(frozen=True)
class Point:
    """One landmark of POINT."""

    name: str
    position: Xyz
    radius: float = 0.0
    group: str = ""
    rgba: Rgba = (0, 0, 0, 0)
    owner: str = ""  # device name of the image it belongs to


@dataclass(frozen=True)
class Points:
    """POINT."""

    points: tuple[Point, ...]


@dataclass(frozen=True)
class Trajectory:
    """One path of TRAJ; `kind` is 1 (entry only), 2 (target only) or 3 (both)."""

    name: str
    entry: Xyz
    target: Xyz
    radius: float = 0.0
    kind: int = 3
    group: str = ""
    rgba: Rgba = (0, 0, 0, 0)
    owner: str = ""


@dataclass(frozen=True)
class Trajectories:
    """TRAJ."""

    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of POLYDATA: `flat` uint32 holds (n, i1 … in) for each, one after the other; indices are checked."""

    count: int = 0
    flat: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))


@dataclass(frozen=True, eq=False)
class Attribute:
    """Values (n, components) float32 of points, or of cells where `kind` is 0x10 or more (igtl_polydata.h)."""

    name: str
    values: NDArray[np.float32]
    kind: int = 0


@dataclass(frozen=True, eq=False)
class PolyData:
    """POLYDATA: `points` (n, 3) float32, and four kinds of cells that refer to them by index."""

    points: NDArray[np.float32]
    vertices: Cells = field(default_factory=Cells)
    lines: Cells = field(default_factory=Cells)
    polygons: Cells = field(default_factory=Cells)
    strips: Cells = field(default_factory=Cells)
    attributes: tuple[Attribute, ...] = ()


def write_points(points: Points) -> tuple[bytes, ...]:
    """Return the content of POINT in parts."""
    return tuple(
        _POINT.pack(
            name_bytes(p.name, 64), name_bytes(p.group, 32), *p.rgba, *p.position, p.radius, name_bytes(p.owner)
        )
        for p in points.points
    )


def read_points(content: memoryview) -> Points:
    """Return what the content of POINT says."""
    return Points(
        tuple(
            Point(read_name(name), (x, y, z), radius, read_name(group), (r, g, b, a), read_name(owner))
            for name, group, r, g, b, a, x, y, z, radius, owner in _POINT.iter_unpack(content)
        )
    )


def write_trajectories(trajectories: Trajectories) -> tuple[bytes, ...]:
    """Return the content of TRAJ in parts."""
    return tuple(
        _TRAJECTORY.pack(
            *(name_bytes(t.name, 64), name_bytes(t.group, 32), t.kind, *t.rgba),
            *(*t.entry, *t.target, t.radius, name_bytes(t.owner)),
        )
        for t in trajectories.trajectories
    )


def read_trajectories(content: memoryview) -> Trajectories:
    """Return what the content of TRAJ says."""
    return Trajectories(
        tuple(
            Trajectory(
                *(read_name(name), tuple(n[4:7]), tuple(n[7:10]), n[10], kind),
                *(read_name(group), tuple(n[:4]), read_name(owner)),
            )
            for name, group, kind, *n, owner in _TRAJECTORY.iter_unpack(content)
        )
    )


def write_polydata(data: PolyData) -> tuple[bytes, ...]:
    """Return the content of POLYDATA in parts."""
    points = np.asarray(data.points, ">f4")
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"encode: expected points (n, 3), got {points.shape}")
    cells = (data.vertices, data.lines, data.polygons, data.strips)
    for one in cells:
        if fault := _cells_fault(one, len(points)):
            raise ValueError(f"encode: POLYDATA with {fault}")
    numbers = [number for one in cells for number in (one.count, 4 * len(one.flat))]
    heads = [_ATTRIBUTE.pack(a.kind, a.values.shape[1], len(a.values)) for a in data.attributes]
    names = b"".join(name_bytes(a.name, 255) + b"\0" for a in data.attributes)
    return (
        _POLYDATA.pack(len(points), *numbers, len(data.attributes)),
        points.tobytes(),
        *(one.flat.astype(">u4").tobytes() for one in cells),
        *heads,
        names + b"\0" * (len(names) % 2),
        *(np.asarray(a.values, ">f4").tobytes() for a in data.attributes),
    )


def read_polydata(content: memoryview) -> PolyData:
    """Return what the content of POLYDATA says."""
    n_points, *numbers, n_attributes = _POLYDATA.unpack_from(content)
    n_cells, n_bytes = numbers[::2], numbers[1::2]
    ends = np.cumsum([_POLYDATA.size, 12 * n_points, *n_bytes, _ATTRIBUTE.size * n_attributes], dtype=object).tolist()
    if ends[-1] > len(content) or any(n % 4 for n in n_bytes):
        raise PeerError(
            f"igtl: POLYDATA of {n_points} points, {n_bytes} bytes of cells and {n_attributes} attributes "
            f"does not fit its content of {len(content)} bytes; mend the sender"
        )
    parts = [content[a:b] for a, b in pairwise(ends)]
    points = np.frombuffer(parts[0], ">f4").astype(np.float32).reshape(n_points, 3)
    cells = [
        Cells(count, np.frombuffer(part, ">u4").astype(np.uint32))
        for count, part in zip(n_cells, parts[1:5], strict=True)
    ]
    for one in cells:
        if fault := _cells_fault(one, n_points):
            raise PeerError(f"igtl: POLYDATA with {fault}; mend the sender")
    vertices, lines, polygons, strips = cells
    attributes = _read_attributes(list(_ATTRIBUTE.iter_unpack(parts[5])), content[ends[-1] :])
    return PolyData(points, vertices, lines, polygons, strips, attributes)


def _cells_fault(cells: Cells, n_points: int) -> str:
    """Why the cells cannot be walked through, or "". A loop only where they are of different sizes."""
    flat, count = cells.flat, cells.count
    if not count or not len(flat):
        return "" if count == len(flat) == 0 else f"{count} cells in {len(flat)} numbers"
    step = int(flat[0]) + 1
    is_head = np.zeros(len(flat), bool)
    if count * step == len(flat) and (flat[::step] == flat[0]).all():
        is_head[::step] = True
    else:
        if count > min(_MOST_UNEVEN_CELLS, len(flat)):
            return f"{count} cells of different sizes in {len(flat)} numbers, at most {_MOST_UNEVEN_CELLS} are taken"
        at, numbers = 0, np.ascontiguousarray(flat, np.uint32).data  # an array is slow to index
        for _ in range(count):
            if at >= len(flat):
                break
            is_head[at] = True
            at += numbers[at] + 1
        if at != len(flat) or is_head.sum() != count:
            return f"{count} cells that do not end with their {len(flat)} numbers"
    indices = flat[~is_head]
    if ((indices >= n_points) & (indices != NO_POINT)).any():
        return f"a cell that refers to point {int(indices.max())} of {n_points}"
    return ""


def _read_attributes(heads: list[tuple[int, int, int]], rest: memoryview) -> tuple[Attribute, ...]:
    n_values = sum(components * n for _, components, n in heads)
    if 4 * n_values > len(rest):
        raise PeerError(f"igtl: POLYDATA with attributes of {n_values} values in {len(rest)} bytes; mend the sender")
    names = bytes(rest[: len(rest) - 4 * n_values]).split(b"\0")
    if len(names) <= len(heads):  # each name ends with a NUL
        raise PeerError(f"igtl: POLYDATA with {len(names) - 1} names for {len(heads)} attributes; mend the sender")
    values = np.frombuffer(rest[len(rest) - 4 * n_values :], ">f4").astype(np.float32)
    attributes, at = [], 0
    for (kind, components, n), name in zip(heads, names, strict=False):
        part = values[at : at + components * n].reshape(n, components)
        attributes.append(Attribute(name.decode("utf-8", "replace"), part, kind))
        at += components * n
    return tuple(attributes)
