# SPDX-License-Identifier: Apache-2.0
"""Where there is nothing to see: the values in each block of a volume, how far matter is, where rays meet it."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

BLOCK = 4  # cells a side; a block's values are those of its cells' corners, 5 voxels a side
FARTHEST = 16  # blocks; a longer way is gone in several leaps
CELL = 8  # pixels a side of a cell of the picture, for which rays begin and end together
_NEVER = 1 << 30
_I: Any = np.int64

compiled = numba.njit(nogil=True, cache=True, error_model="numpy")


@compiled
def block_ranges(voxels: npt.NDArray[Any], lowest: npt.NDArray[Any], highest: npt.NDArray[Any]) -> None:
    """Write the least and the largest value of each block; all are (z, y, x), voxels at least 2 along each axis.

    One pass at the speed of memory: comparing with the version before, to find what changed, would read twice as much.
    """
    n_z, n_y, n_x = voxels.shape
    least, most = np.empty(n_x, voxels.dtype), np.empty(n_x, voxels.dtype)
    for bz in range(lowest.shape[0]):
        for by in range(lowest.shape[1]):
            least[:] = voxels[bz * BLOCK, by * BLOCK]
            most[:] = least
            for z in range(bz * BLOCK, min(bz * BLOCK + BLOCK + 1, n_z)):
                for y in range(by * BLOCK, min(by * BLOCK + BLOCK + 1, n_y)):
                    line = voxels[z, y]
                    for x in range(n_x):
                        least[x] = min(least[x], line[x])
                        most[x] = max(most[x], line[x])
            for bx in range(lowest.shape[2]):
                low, high = least[bx * BLOCK], most[bx * BLOCK]
                for x in range(bx * BLOCK + 1, min(bx * BLOCK + BLOCK + 1, n_x)):
                    low, high = min(low, least[x]), max(high, most[x])
                lowest[bz, by, bx], highest[bz, by, bx] = low, high


def n_blocks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Blocks along each axis of a volume of `shape`."""
    return tuple(-(-(n - 1) // BLOCK) for n in shape)


def distance_to_matter(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """How many blocks away (chessboard) the nearest block with something `seen` is: 0 in it, at most FARTHEST."""
    near = seen
    distance = np.zeros(seen.shape, np.uint8)
    for _ in range(FARTHEST):
        distance += ~near
        for axis in range(3):
            grown, one, other = near.copy(), [slice(None)] * 3, [slice(None)] * 3
            one[axis], other[axis] = slice(1, None), slice(None, -1)
            grown[tuple(one)] |= near[tuple(other)]
            grown[tuple(other)] |= near[tuple(one)]
            near = grown
    return distance


@compiled
def _splat(distance: npt.NDArray[np.uint8], first: Any, along: Any, half: Any, enter: Any, leave: Any) -> None:
    n_z, n_y, n_x = distance.shape
    scale = np.float32(1.0 / CELL)
    for z in range(n_z):
        for y in range(n_y):
            at = first + along[1] * np.float32(y) + along[2] * np.float32(z)
            for x in range(n_x):
                if distance[z, y, x] != 0:
                    continue
                column, row, k = (
                    at[0] + along[0, 0] * np.float32(x),
                    at[1] + along[0, 1] * np.float32(x),
                    at[2] + along[0, 2] * np.float32(x),
                )
                k_first, k_end = _I(np.floor(k - half[2])), _I(np.ceil(k + half[2])) + 1
                j_first = max(_I((column - half[0]) * scale), 0)
                j_last = min(_I((column + half[0]) * scale), enter.shape[1] - 1)
                i_first = max(_I((row - half[1]) * scale), 0)
                i_last = min(_I((row + half[1]) * scale), enter.shape[0] - 1)
                for i in range(i_first, i_last + 1):
                    for j in range(j_first, j_last + 1):
                        enter[i, j] = min(enter[i, j], k_first)
                        leave[i, j] = max(leave[i, j], k_end)


def where_rays_meet_matter(
    distance: npt.NDArray[np.uint8], rays: npt.NDArray[np.float32], size: tuple[int, int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return (first k, one past the last k) of all rays of each cell of a picture of `size` (rows, columns).

    A block casts the same shadow wherever it is, for the rays are parallel. `rays` as of `ray_cast`.
    """
    to_picture = np.linalg.inv(rays[1:].T.astype(np.float64))  # voxels -> (column, row, k)
    first = to_picture @ (np.full(3, BLOCK / 2) - rays[0])
    half = np.abs(to_picture) @ np.full(3, BLOCK / 2) + 0.01  # more than float32 rounds off
    shape = (-(-size[0] // CELL), -(-size[1] // CELL))
    enter, leave = np.full(shape, _NEVER, np.int32), np.full(shape, -_NEVER, np.int32)
    along = np.ascontiguousarray(to_picture.T * BLOCK, np.float32)
    _splat(distance, first.astype(np.float32), along, half.astype(np.float32), enter, leave)
    return enter, leave
