# SPDX-License-Identifier: Apache-2.0
"""The loops of ray casting: parallel rays through a volume, front to back, compiled and without the GIL.

A ray is ``origin + column * right + row * down + k * ahead`` in voxel indices (x, y, z), k whole: the four rows of
`rays`. What is skipped changes no sample. Values are interpolated trilinearly between voxel centres; outside the
outermost centres there is nothing. Every compiled function takes float32 and gives float32.

Reference: Levoy, Display of surfaces from volume data, doi:10.1109/38.511.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from appliance.render.skip_space import BLOCK, CELL

_SHIFT = BLOCK.bit_length() - 1
assert BLOCK == 1 << _SHIFT

TILE = 16  # rays of a tile read the same cache lines
OPAQUE = 0.99  # what is behind so much opacity is not looked at (VTK stops at 0.992)
AMBIENT, DIFFUSE, SPECULAR = np.float32(0.15), np.float32(0.85), np.float32(0.25)  # headlight; specular power 16

compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
inlined = numba.njit(  # a call costs as much as a sample
    nogil=True, cache=True, fastmath=True, error_model="numpy", inline="always"
)

_F: Any = np.float32
_I: Any = np.int64
_U: Any = np.uint64  # where an index must not be taken for one from the end
_FAR = np.float32(1e30)


class Space(NamedTuple):
    """A volume as rays see it."""

    voxels: npt.NDArray[Any]  # flat, x fastest
    shape: npt.NDArray[np.int64]  # (x, y, z)
    distance: npt.NDArray[np.uint8]  # (z, y, x) blocks: skip_space.distance_to_matter
    highest: npt.NDArray[Any]  # (z, y, x) blocks: the largest value
    enter: npt.NDArray[np.int32]  # (row, column) cells of the picture: skip_space.where_rays_meet_matter
    leave: npt.NDArray[np.int32]


@inlined
def _span(space: Any, row: Any, column: Any, start: Any, ahead: Any) -> Any:
    """First and one past the last k at which a ray can meet matter."""
    low, high, edge = _F(-1e6), _F(1e6), _F(1e-3)  # of a voxel: rounding must not lose the outermost slices
    for axis in range(3):
        first, last = -edge - start[axis], _F(space.shape[axis] - 1) + edge - start[axis]
        if abs(ahead[axis]) > _F(1e-9):
            one, other = first / ahead[axis], last / ahead[axis]
            low, high = max(low, min(one, other)), min(high, max(one, other))
        elif first > _F(0) or last < _F(0):
            high = _F(-2e6)
    k = max(_I(math.ceil(low)), _I(space.enter[row // CELL, column // CELL]))
    return k, min(_I(math.floor(high)) + 1, _I(space.leave[row // CELL, column // CELL]))


@inlined
def _cell(at: Any, n: Any) -> Any:
    """The cell between voxel centres that `at` is in."""
    return min(max(_I(at), 0), n - 2)


@inlined
def _inverse(ahead: Any) -> Any:
    return _F(1) / ahead if abs(ahead) > _F(1e-9) else _FAR


@inlined
def _steps(at: Any, ahead: Any, inverse: Any, block: Any, reach: Any) -> Any:
    """Steps along one axis after which a ray is out of the blocks nearer than `reach` to `block`."""
    edge = (block + reach) * BLOCK if ahead > _F(-1e-9) else (block + 1 - reach) * BLOCK
    return min((_F(edge) - at) * inverse, _F(1e6))


@inlined
def _leave_block(space: Any, at: Any, ahead: Any, inverse: Any) -> Any:
    """Block (z, y, x) that `at` is in, its distance to matter, and the steps until there may be something new."""
    bx = _cell(at[0], space.shape[0]) >> _SHIFT
    by = _cell(at[1], space.shape[1]) >> _SHIFT
    bz = _cell(at[2], space.shape[2]) >> _SHIFT
    distance = _I(space.distance[_U(bz), _U(by), _U(bx)])
    reach = max(distance, 1)
    way = min(
        _steps(at[0], ahead[0], inverse[0], bx, reach),
        _steps(at[1], ahead[1], inverse[1], by, reach),
        _steps(at[2], ahead[2], inverse[2], bz, reach),
    )
    return (_U(bz), _U(by), _U(bx)), distance, max(_I(way), 0) + 1


@inlined
def _corners(voxels: Any, at: Any, sy: Any, sz: Any) -> Any:
    """The eight values around a cell, x fastest."""
    return (
        _F(voxels[_U(at)]),
        _F(voxels[_U(at + 1)]),
        _F(voxels[_U(at + sy)]),
        _F(voxels[_U(at + sy + 1)]),
        _F(voxels[_U(at + sz)]),
        _F(voxels[_U(at + sz + 1)]),
        _F(voxels[_U(at + sz + sy)]),
        _F(voxels[_U(at + sz + sy + 1)]),
    )


@inlined
def _mix(a: Any, b: Any, part: Any) -> Any:
    return a + part * (b - a)


@inlined
def _mix4(a: Any, b: Any, c: Any, d: Any, one: Any, other: Any) -> Any:
    return _mix(_mix(a, b, one), _mix(c, d, one), other)


@inlined
def _cell_gradient(c: Any, x: Any, y: Any, z: Any) -> Any:
    """Twice the gradient of the interpolant itself, which jumps from cell to cell."""
    return (
        _F(2) * _mix4(c[1] - c[0], c[3] - c[2], c[5] - c[4], c[7] - c[6], y, z),
        _F(2) * _mix4(c[2] - c[0], c[3] - c[1], c[6] - c[4], c[7] - c[5], x, z),
        _F(2) * _mix4(c[4] - c[0], c[5] - c[1], c[6] - c[2], c[7] - c[3], x, y),
    )


@inlined
def _along(voxels: Any, at: Any, step: Any, s: Any, t: Any, before: Any, after: Any, near: Any, p: Any) -> Any:
    """Central differences along one axis at the corners of a cell (s, t: strides of the others), interpolated at p."""
    m, n = at - before * step, at + step + after * step
    a0, a1, a2, a3 = _F(voxels[_U(m)]), _F(voxels[_U(m + s)]), _F(voxels[_U(m + t)]), _F(voxels[_U(m + s + t)])
    b0, b1, b2, b3 = _F(voxels[_U(n)]), _F(voxels[_U(n + s)]), _F(voxels[_U(n + t)]), _F(voxels[_U(n + s + t)])
    lower = _mix4(near[4] - a0, near[5] - a1, near[6] - a2, near[7] - a3, p[1], p[2])
    upper = _mix4(b0 - near[0], b1 - near[1], b2 - near[2], b3 - near[3], p[1], p[2])
    return _mix(lower * _F(2 - before), upper * _F(2 - after), p[0])  # one-sided at the border


@inlined
def _gradient(space: Any, at: Any, i: Any, j: Any, k: Any, c: Any, x: Any, y: Any, z: Any) -> Any:
    """Twice the gradient per voxel: central differences (one-sided at the border), interpolated trilinearly."""
    n_x, n_y, n_z = space.shape[0], space.shape[1], space.shape[2]
    sy, sz, v = n_x, n_x * n_y, space.voxels
    return (
        _along(
            v, at, 1, sy, sz, min(i, 1), min(n_x - 2 - i, 1),
            (c[0], c[2], c[4], c[6], c[1], c[3], c[5], c[7]), (x, y, z),
        ),
        _along(
            v, at, sy, 1, sz, min(j, 1), min(n_y - 2 - j, 1),
            (c[0], c[1], c[4], c[5], c[2], c[3], c[6], c[7]), (y, x, z),
        ),
        _along(v, at, sz, 1, sy, min(k, 1), min(n_z - 2 - k, 1), c, (z, x, y)),
    )  # fmt: skip


@inlined
def _lit(g: Any, to_view: Any) -> Any:
    """Diffuse and specular light of a headlight on a surface with gradient `g` per voxel, seen from either side."""
    u = to_view[0, 0] * g[0] + to_view[0, 1] * g[1] + to_view[0, 2] * g[2]
    v = to_view[1, 0] * g[0] + to_view[1, 1] * g[1] + to_view[1, 2] * g[2]
    w = to_view[2, 0] * g[0] + to_view[2, 1] * g[1] + to_view[2, 2] * g[2]
    length2 = u * u + v * v + w * w
    cosine2 = w * w / length2 if length2 > _F(1e-12) else _F(1)
    shine = cosine2 * cosine2
    shine *= shine
    return AMBIENT + DIFFUSE * math.sqrt(cosine2), SPECULAR * shine * shine


@compiled
def _colour_ray(
    space: Any,
    start: Any,
    ahead: Any,
    k: Any,
    end: Any,
    to_view: Any,
    table: Any,
    low: Any,
    scale: Any,
    weak: Any,
) -> Any:
    """Red, green, blue (0..1) of one ray over black."""
    n_x, n_y, n_z = space.shape[0], space.shape[1], space.shape[2]
    dx, dy, dz = ahead[0], ahead[1], ahead[2]
    inverse = (_inverse(dx), _inverse(dy), _inverse(dz))
    last = _I(table.shape[0] - 1)
    red, green, blue, left = _F(0), _F(0), _F(0), _F(1)
    while k < end and left > _F(1 - OPAQUE):
        x, y, z = start[0] + _F(k) * dx, start[1] + _F(k) * dy, start[2] + _F(k) * dz
        _, distance, n_steps = _leave_block(space, (x, y, z), (dx, dy, dz), inverse)
        n_steps = min(n_steps, end - k)
        k += n_steps
        if distance > 0:
            continue
        for _ in range(n_steps):
            cx, cy, cz = _cell(x, n_x), _cell(y, n_y), _cell(z, n_z)
            fx, fy, fz = x - _F(cx), y - _F(cy), z - _F(cz)
            at = cx + n_x * (cy + n_y * cz)
            c = _corners(space.voxels, at, n_x, n_x * n_y)
            value = _mix(_mix4(c[0], c[1], c[2], c[3], fx, fy), _mix4(c[4], c[5], c[6], c[7], fx, fy), fz)
            entry = _U(min(max(_I((value - low) * scale), 0), last))
            weight = left * table[entry, _U(3)]
            if weight > _F(0):
                if weight < weak:
                    light, shine = _lit(_cell_gradient(c, fx, fy, fz), to_view)
                else:
                    light, shine = _lit(_gradient(space, at, cx, cy, cz, c, fx, fy, fz), to_view)
                red += weight * (table[entry, _U(0)] * light + shine)
                green += weight * (table[entry, _U(1)] * light + shine)
                blue += weight * (table[entry, _U(2)] * light + shine)
                left -= weight
                if left < _F(1 - OPAQUE):
                    break
            x, y, z = x + dx, y + dy, z + dz
    return red, green, blue


@compiled
def cast_colours(
    space: Any, rays: Any, to_view: Any, table: Any, low: Any, scale: Any, weak: Any, rows: Any, picture: Any
) -> None:
    """Draw rows [rows[0], rows[1]) of `picture` (y, x, 3) uint8.

    `to_view` (3, 3) float32 brings a gradient per voxel to one per mm along right, down and ahead. `table` (n, 4)
    float32: red, green, blue (0..1) and opacity of one step, for value ``low + index / scale``. A sample that adds
    less than `weak` is lit by the gradient within its cell, which costs half of the central differences.
    """
    start = np.empty(3, np.float32)
    for tile_y in range(rows[0], rows[1], TILE):
        for tile_x in range(0, picture.shape[1], TILE):
            for row in range(tile_y, min(tile_y + TILE, rows[1])):
                for column in range(tile_x, min(tile_x + TILE, picture.shape[1])):
                    for axis in range(3):
                        start[axis] = rays[0, axis] + _F(column) * rays[1, axis] + _F(row) * rays[2, axis]
                    k, end = _span(space, row, column, start, rays[3])
                    if k >= end:
                        picture[row, column, :] = 0
                        continue
                    colour = _colour_ray(space, start, rays[3], k, end, to_view, table, _F(low), _F(scale), _F(weak))
                    for channel in range(3):
                        picture[row, column, channel] = np.uint8(min(colour[channel], _F(1)) * _F(255) + _F(0.5))


@inlined
def _highest_on_ray(space: Any, start: Any, ahead: Any, k: Any, end: Any, floor: Any) -> Any:
    """The largest value on one ray, `floor` where there is nothing above it."""
    n_x, n_y, n_z = space.shape[0], space.shape[1], space.shape[2]
    dx, dy, dz = ahead[0], ahead[1], ahead[2]
    inverse = (_inverse(dx), _inverse(dy), _inverse(dz))
    best = floor
    while k < end:
        x, y, z = start[0] + _F(k) * dx, start[1] + _F(k) * dy, start[2] + _F(k) * dz
        block, distance, n_steps = _leave_block(space, (x, y, z), (dx, dy, dz), inverse)
        n_steps = min(n_steps, end - k)
        k += n_steps
        if distance > 0 or _F(space.highest[block]) <= best:
            continue
        for _ in range(n_steps):
            cx, cy, cz = _cell(x, n_x), _cell(y, n_y), _cell(z, n_z)
            fx, fy, fz = x - _F(cx), y - _F(cy), z - _F(cz)
            c = _corners(space.voxels, cx + n_x * (cy + n_y * cz), n_x, n_x * n_y)
            best = max(best, _mix(_mix4(c[0], c[1], c[2], c[3], fx, fy), _mix4(c[4], c[5], c[6], c[7], fx, fy), fz))
            x, y, z = x + dx, y + dy, z + dz
    return best


@compiled
def cast_highest(space: Any, rays: Any, floor: Any, rows: Any, values: Any) -> None:
    """Write the largest value on each ray into rows [rows[0], rows[1]) of `values` (y, x) float32, `floor` at least."""
    start = np.empty(3, np.float32)
    for tile_y in range(rows[0], rows[1], TILE):
        for tile_x in range(0, values.shape[1], TILE):
            for row in range(tile_y, min(tile_y + TILE, rows[1])):
                for column in range(tile_x, min(tile_x + TILE, values.shape[1])):
                    for axis in range(3):
                        start[axis] = rays[0, axis] + _F(column) * rays[1, axis] + _F(row) * rays[2, axis]
                    k, end = _span(space, row, column, start, rays[3])
                    values[row, column] = _highest_on_ray(space, start, rays[3], k, end, _F(floor))


@compiled
def cut(voxels: Any, rays: Any, outside: Any, rows: Any, values: Any) -> None:
    """Write the plane k = 0 of `voxels` (z, y, x) into rows [rows[0], rows[1]) of `values` (y, x) float32.

    Where no voxel is, it is `outside`. A voxel reaches half its size beyond its centre; there its own value holds.
    """
    n_z, n_y, n_x = voxels.shape
    flat = voxels.reshape(n_z * n_y * n_x)
    for row in range(rows[0], rows[1]):
        for column in range(values.shape[1]):
            x = rays[0, 0] + _F(column) * rays[1, 0] + _F(row) * rays[2, 0]
            y = rays[0, 1] + _F(column) * rays[1, 1] + _F(row) * rays[2, 1]
            z = rays[0, 2] + _F(column) * rays[1, 2] + _F(row) * rays[2, 2]
            h = _F(0.5)
            if min(x, y, z) < -h or x > _F(n_x) - h or y > _F(n_y) - h or z > _F(n_z) - h:
                values[row, column] = _F(outside)
                continue
            cx, cy, cz = _cell(x, n_x), _cell(y, n_y), _cell(z, n_z)
            fx = min(max(x - _F(cx), _F(0)), _F(1))
            fy = min(max(y - _F(cy), _F(0)), _F(1))
            fz = min(max(z - _F(cz), _F(0)), _F(1))
            c = _corners(flat, cx + n_x * (cy + n_y * cz), n_x, n_x * n_y)
            values[row, column] = _mix(_mix4(c[0], c[1], c[2], c[3], fx, fy), _mix4(c[4], c[5], c[6], c[7], fx, fy), fz)
