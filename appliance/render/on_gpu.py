# SPDX-License-Identifier: Apache-2.0
"""Ray casting on a GPU: a thread for each ray, made of the very functions of ray_cast.py.

Rule: nothing is drawn with it before it has drawn a known volume as the CPU does, on this machine (`find_gpu`).
"""

from __future__ import annotations

from typing import Any

import numba.cuda
import numpy as np
import numpy.typing as npt
from numba.cuda.cudadrv.driver import CudaAPIError

from appliance.render import ray_cast, skip_space

THREADS = (8, 8)  # rays of a block go nearly the same way
LARGEST_DIFFERENCE = 2  # of 255: a multiplication and an addition are rounded together on one and not on the other
_F: Any = np.float32
_Array = npt.NDArray[Any]
cuda: Any = numba.cuda


@ray_cast.inlined
def _start(rays: Any, row: Any, column: Any) -> Any:
    """Where the ray of a pixel begins, in voxels."""
    return (
        rays[0, 0] + _F(column) * rays[1, 0] + _F(row) * rays[2, 0],
        rays[0, 1] + _F(column) * rays[1, 1] + _F(row) * rays[2, 1],
        rays[0, 2] + _F(column) * rays[1, 2] + _F(row) * rays[2, 2],
    )


def _colour_rays(
    voxels: Any, shape: Any, distance: Any, highest: Any, enter: Any, leave: Any,
    rays: Any, to_view: Any, table: Any, numbers: Any, first_row: Any, picture: Any,
) -> None:  # fmt: skip
    column, row = cuda.grid(2)
    if row >= picture.shape[0] or column >= picture.shape[1]:
        return
    space = ray_cast.Space(voxels, shape, distance, highest, enter, leave)
    start = _start(rays, first_row + row, column)
    k, end = ray_cast._span(space, first_row + row, column, start, rays[3])
    colour = (_F(0), _F(0), _F(0))
    if k < end:
        colour = ray_cast._colour_ray(space, start, rays[3], k, end, to_view, table, numbers[0], numbers[1], numbers[2])
    for channel in range(3):
        picture[row, column, channel] = np.uint8(min(colour[channel], _F(1)) * _F(255) + _F(0.5))


def _highest_on_rays(
    voxels: Any, shape: Any, distance: Any, highest: Any, enter: Any, leave: Any,
    rays: Any, floor: Any, first_row: Any, values: Any,
) -> None:  # fmt: skip
    column, row = cuda.grid(2)
    if row >= values.shape[0] or column >= values.shape[1]:
        return
    space = ray_cast.Space(voxels, shape, distance, highest, enter, leave)
    start = _start(rays, first_row + row, column)
    k, end = ray_cast._span(space, first_row + row, column, start, rays[3])
    values[row, column] = ray_cast._highest_on_ray(space, start, rays[3], k, end, floor)


cast_colours: Any = cuda.jit(fastmath=True)(_colour_rays)
cast_highest: Any = cuda.jit(fastmath=True)(_highest_on_rays)


class OnGpu:
    """`cast_colours` and `cast_highest` as in ray_cast.py, with the same arguments. Use it from one thread.

    The volume of the last call stays on the GPU: its arrays are held, so that nobody else's can be at their address.
    A GPU that fails (no memory, lost) is not asked again: `fault` says why, and the CPU draws.
    """

    def __init__(self) -> None:
        self.fault = ""
        self._held: dict[str, tuple[_Array, Any]] = {}

    def cast_colours(
        self, space: ray_cast.Space, rays: _Array, to_view: _Array, table: _Array,
        low: float, scale: float, weak: float, rows: tuple[int, int], picture: npt.NDArray[np.uint8],
    ) -> None:  # fmt: skip
        """See ray_cast.cast_colours."""
        numbers = np.array([low, scale, weak], np.float32)
        if not self._cast(cast_colours, space, (rays, to_view, table, numbers), rows, picture):
            ray_cast.cast_colours(space, rays, to_view, table, low, scale, weak, rows, picture)

    def cast_highest(
        self, space: ray_cast.Space, rays: _Array, floor: float, rows: tuple[int, int], values: npt.NDArray[np.float32]
    ) -> None:
        """See ray_cast.cast_highest."""
        if not self._cast(cast_highest, space, (rays, np.float32(floor)), rows, values):
            ray_cast.cast_highest(space, rays, floor, rows, values)

    def _cast(self, kernel: Any, space: ray_cast.Space, given: tuple[Any, ...], rows: Any, out: _Array) -> bool:
        """Draw; False where the GPU did not."""
        if self.fault:
            return False
        part = out[rows[0] : rows[1]]
        grid = (-(-part.shape[1] // THREADS[0]), -(-part.shape[0] // THREADS[1]))
        try:
            drawn = cuda.device_array(part.shape, part.dtype)
            kernel[grid, THREADS](*self._there(space), *given, rows[0], drawn)
            part[:] = drawn.copy_to_host()
        except CudaAPIError as error:
            self.fault = f"render: the GPU failed ({error}); the CPU draws until the console is started again"
            self._held.clear()
        return not self.fault

    def _there(self, space: ray_cast.Space) -> list[Any]:
        """The arrays of `space` on the GPU; only what is not there yet is copied."""
        there = []
        for name, array in space._asdict().items():
            held = self._held.get(name)
            if held is None or not _is_same(held[0], array):
                self._held[name] = held = (array, cuda.to_device(array))
            there.append(held[1])
        return there


def _is_same(one: _Array, other: _Array) -> bool:
    where = [array.__array_interface__ for array in (one, other)]
    return where[0]["data"] == where[1]["data"] and one.shape == other.shape and one.dtype == other.dtype


def find_gpu() -> tuple[OnGpu | None, str]:
    """Return a GPU that draws as the CPU does, or None and why there is none that may."""
    if not cuda.is_available():
        return None, "render: no CUDA device answers"
    gpu = OnGpu()
    difference = _difference(gpu)
    if difference > LARGEST_DIFFERENCE:
        return (
            None,
            f"render: the GPU's picture differs by {difference} of 255 from the CPU's; the CPU draws, report it",
        )
    return gpu, ""


def known_scene() -> tuple[ray_cast.Space, _Array, _Array, _Array]:
    """A ball in a haze: (space, rays, to_view, table) for pictures of 64 x 64."""
    z, y, x = np.indices((20, 24, 28), np.float32)
    ball = 80 * np.exp(-((x - 12) ** 2 + (y - 13) ** 2 + (z - 9) ** 2) / 40) + 10 * np.sin(x) ** 2
    voxels = np.ascontiguousarray(ball.astype(np.int16))
    lowest = np.empty(skip_space.n_blocks(voxels.shape), voxels.dtype)
    highest = np.empty_like(lowest)
    skip_space.block_ranges(voxels, lowest, highest)
    # no ray runs along a face of a cell, where rounding decides in which it is
    rays = np.array([[-8.137, -2.261, 4.379], [0.6, 0.1, 0], [-0.05, 0.4, 0.2], [0.1, 0.3, 0.9]], np.float32)
    distance = skip_space.distance_to_matter(highest > 12)
    met = skip_space.where_rays_meet_matter(distance, rays, (64, 64))
    entries = np.linspace(0, 1, 4096, dtype=np.float32)
    opacity = 0.3 * np.maximum(entries - 0.15, 0)  # without a jump: rounding finds the next entry now and then
    table = np.ascontiguousarray(np.stack([entries, entries**2, 1 - entries, opacity], axis=1))
    to_view = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]], np.float32)
    return ray_cast.Space(voxels.ravel(), np.array(voxels.shape[::-1]), distance, highest, *met), rays, to_view, table


def draw_known(caster: Any, rows: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return rows of (colours, lit by one gradient and by the other; maxima) of the known scene; other rows are 7."""
    space, rays, to_view, table = known_scene()
    colours, highest = np.full((2, 64, 64, 3), 7, np.uint8), np.full((64, 64), 7, np.float32)
    for weak, picture in zip((0.0, 1.0), colours, strict=True):
        caster.cast_colours(space, rays, to_view, table, 0.0, 48.0, weak, rows, picture)
    caster.cast_highest(space, rays, 12.0, rows, highest)
    return colours, highest


def _difference(gpu: OnGpu) -> int:
    """Largest difference of the pictures of the known scene, in grey levels."""
    (colours, highest), (expected, maxima) = (draw_known(caster, (0, 64)) for caster in (gpu, ray_cast))
    apart = np.abs(colours.astype(int) - expected).max(), np.abs(highest - maxima).max()
    return int(np.ceil(max(apart) - 1e-3))
