# SPDX-License-Identifier: Apache-2.0
"""Draw a view of a volume, band by band, so that whoever draws for many can turn to another in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from appliance.imaging.volume_message import Volume
from appliance.render import ray_cast, skip_space
from appliance.render.transfer import Preset, check_values, colour_table, find_preset, seen_blocks, window
from appliance.render.view import Pane, View, panes

_BAND_RAYS = 32_768  # about 10 ms of work
_MOST_STEPS = 2048  # no affine may make a picture take for ever


class Quality(NamedTuple):
    """How finely: pixels of a side drawn as one, step over the shortest voxel side, what `cast_colours` calls weak."""

    coarse: int
    step: float
    weak: float


DRAFTS = (Quality(1, 1.5, 1.0), Quality(2, 1.5, 1.0), Quality(4, 2.0, 1.0))  # while dragging; the finest that keeps up
SHARP = Quality(1, 1.0, 0.03)  # weak 0.03 costs at most 1.4 dB of 36 to 49 and saves a tenth (benchmarks/render.py)
FINEST = Quality(1, 0.5, 0.0)


@dataclass(frozen=True, eq=False)
class Scene:
    """A volume made ready: its values (z, y, x), at least two along each axis, and the range of each block.

    `caster` has `cast_colours` and `cast_highest`: ray_cast.py, or a GPU (on_gpu.py).
    """

    volume: Volume
    array: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]
    lowest: npt.NDArray[Any]
    highest: npt.NDArray[Any]
    caster: Any = ray_cast
    _distances: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def step_mm(self) -> float:
        """Shortest side of a voxel, or what takes a ray through the volume in `_MOST_STEPS`."""
        sides = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(max(sides.min(), (sides * self.array.shape[::-1]).sum() / _MOST_STEPS))

    def space(
        self, key: str, seen: Callable[[], npt.NDArray[np.bool_]], rays: npt.NDArray[np.float32], size: tuple[int, int]
    ) -> ray_cast.Space:
        """The volume as `rays` of a picture of `size` see it; what `seen` gives is kept by its `key`."""
        if key not in self._distances:
            self._distances[key] = skip_space.distance_to_matter(seen())
        distance = self._distances[key]
        met = skip_space.where_rays_meet_matter(distance, rays, size)
        return ray_cast.Space(self.array.ravel(), np.array(self.array.shape[::-1]), distance, self.highest, *met)


def prepare(volume: Volume, caster: Any = ray_cast) -> Scene:
    """Make a volume ready to be drawn by `caster`. Raises ValueError as `transfer.check_values`."""
    check_values(volume)
    array, affine = volume.array, np.array(volume.affine, np.float64)
    for axis in (axis for axis in range(3) if array.shape[axis] == 1):  # one voxel is as thick as it is far to the next
        array = np.repeat(array, 2, axis)
        affine[:3, 3] -= affine[:3, 2 - axis] / 2
    array = array.view()
    array.flags.writeable = False  # one type for the compiler
    lowest = np.empty(skip_space.n_blocks(array.shape), array.dtype)
    highest = np.empty_like(lowest)
    skip_space.block_ranges(array, lowest, highest)
    return Scene(volume, array, affine, lowest, highest, caster)


@dataclass(frozen=True, eq=False)
class Picture:
    """(y, x) grey or (y, x, 3) colours, uint8; each pixel stands for `coarse` x `coarse` of the view's."""

    pixels: npt.NDArray[np.uint8]
    coarse: int
    panes: list[Pane]


def draw(scene: Scene, view: View, quality: Quality) -> Generator[None, None, Picture]:
    """Yield between bands; return the picture."""
    parts = panes(view, scene.affine, scene.array.shape)
    grey = all(pane.kind != "volume" for pane in parts)
    shape = (view.height // quality.coarse, view.width // quality.coarse)
    pixels = np.zeros(shape if grey else (*shape, 3), np.uint8)
    for pane in parts:
        drawn = yield from _draw_pane(scene, view, pane, quality)
        top, left = pane.top // quality.coarse, pane.left // quality.coarse
        place = pixels[top : top + drawn.shape[0], left : left + drawn.shape[1]]
        place[:] = drawn if grey or drawn.ndim == 3 else drawn[:, :, None]
    return Picture(pixels, quality.coarse, parts)


def _draw_pane(scene: Scene, view: View, pane: Pane, quality: Quality) -> Generator[None, None, npt.NDArray[np.uint8]]:
    preset = find_preset(scene.volume.modality, view.preset)
    step_mm = scene.step_mm * quality.step
    rays = pane.rays(scene.affine, step_mm, quality.coarse)
    size = (pane.height // quality.coarse, pane.width // quality.coarse)
    if pane.kind == "volume":
        return (yield from _colours(scene, preset, rays, pane.to_view(scene.affine), step_mm, quality.weak, size))
    low, high = window(scene.volume, preset)
    values = np.empty(size, np.float32)
    if pane.kind == "mip":
        space = scene.space(f"above {low}", lambda: scene.highest.astype(np.float32) > low, rays, size)
        for rows in _bands(size):
            scene.caster.cast_highest(space, rays, low, rows, values)
            yield
    else:
        for rows in _bands(size):
            ray_cast.cut(scene.array, rays, low, rows, values)
            yield
    return ((values - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)


def _colours(
    scene: Scene,
    preset: Preset,
    rays: npt.NDArray[np.float32],
    to_view: npt.NDArray[np.float32],
    step_mm: float,
    weak: float,
    size: tuple[int, int],
) -> Generator[None, None, npt.NDArray[np.uint8]]:
    table = colour_table(scene.volume, preset, step_mm)
    space = scene.space(preset.name, lambda: seen_blocks(table, scene.lowest, scene.highest), rays, size)
    colours = np.empty((*size, 3), np.uint8)
    for rows in _bands(size):
        scene.caster.cast_colours(space, rays, to_view, table.rows, table.low, table.scale, weak, rows, colours)
        yield
    return colours


def _bands(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    n_rows = max(_BAND_RAYS // size[1] // ray_cast.TILE, 1) * ray_cast.TILE
    return ((first, min(first + n_rows, size[0])) for first in range(0, size[0], n_rows))
