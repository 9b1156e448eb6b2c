# SPDX-License-Identifier: Apache-2.0
"""What somebody looks at: the state of a view, checked as a stranger's, and its panes in LPS mm.

A camera without rotation looks at a patient's front: right on the picture is patient left (+x), down is feet (-z),
ahead is the patient's back (+y). Axes of a picture are (right, down, ahead), right-handed as LPS is: nothing is
ever mirrored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Mode = Literal["volume", "mip", "slices", "oblique"]
SMALLEST, LARGEST = 64, 1536  # pixels of a side
UNIT = 8  # a side is a multiple of it, so that coarser pictures cover the same
MOST_ZOOM = 50.0

Vector = npt.NDArray[np.float64]

_FRONT = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # rows: right, down, ahead
_PLANES = {
    "axial": np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]),  # seen from the feet: patient right on the left
    "coronal": _FRONT,
    "sagittal": np.array([[0, 1.0, 0], [0, 0, -1.0], [-1.0, 0, 0]]),  # anterior on the left
}
_PATIENT = (("R", "L"), ("A", "P"), ("F", "H"))  # towards -x and +x, -y and +y, -z and +z
_TRACKER = (("−X", "+X"), ("−Y", "+Y"), ("−Z", "+Z"))  # the axes of a tracker's reference say nothing of the patient


@dataclass(frozen=True)
class View:
    """One state of one viewer.

    `rotation` is a unit quaternion (x, y, z, w) that turns the camera in LPS; `zoom` 1 fits the volume; `pan_mm`
    (right, down) moves the picture's centre; `at_mm` is the point in LPS through which slices go, None: the middle.
    """

    mode: Mode = "volume"
    preset: str = ""
    rotation: tuple[float, ...] = (0.0, 0.0, 0.0, 1.0)
    zoom: float = 1.0
    pan_mm: tuple[float, ...] = (0.0, 0.0)
    at_mm: tuple[float, ...] | None = None
    width: int = 512
    height: int = 512
    dragging: bool = False


def read_view(said: Mapping[str, Any]) -> View:
    """Return the view that a page asks for. Raises ValueError where it is none; sizes are brought within bounds."""
    mode = said.get("mode", "volume")
    if mode not in get_args(Mode):
        raise ValueError(f"view: mode {str(mode)[:40]!r}; one of {', '.join(get_args(Mode))}")
    rotation = np.array(_numbers(said, "rotation", 4, (0, 0, 0, 1)))
    length = float(np.linalg.norm(rotation))
    zoom = _numbers({"zoom": [said.get("zoom", 1)]}, "zoom", 1, ())[0]
    if length < 1e-3 or zoom <= 0:
        raise ValueError(f"view: rotation of length {length:g}, zoom {zoom:g}; both must be more than 0")
    width, height = _numbers({"size": [said.get("width", 512), said.get("height", 512)]}, "size", 2, ())
    at = said.get("at_mm")
    return View(
        mode=mode,
        preset=str(said.get("preset", ""))[:40],
        rotation=tuple((rotation / length).tolist()),
        zoom=min(max(zoom, 1 / MOST_ZOOM), MOST_ZOOM),
        pan_mm=_numbers(said, "pan_mm", 2, (0, 0)),
        at_mm=None if at is None else _numbers(said, "at_mm", 3, ()),
        width=_side(width),
        height=_side(height),
        dragging=said.get("dragging") is True,
    )


def _numbers(said: Mapping[str, Any], key: str, n: int, default: tuple[float, ...]) -> tuple[float, ...]:
    values = said.get(key, default)
    good = isinstance(values, list | tuple) and len(values) == n
    if not good or not all(type(value) in (int, float) and abs(value) <= 1e6 for value in values):
        raise ValueError(f"view: {key} {str(values)[:80]}; {n} numbers up to a million are expected")
    return tuple(float(value) for value in values)


def _side(pixels: float) -> int:
    return int(min(max(pixels, SMALLEST), LARGEST)) // UNIT * UNIT


@dataclass(frozen=True, eq=False)
class Pane:
    """One part of a picture: where it is (pixels), and what is seen there (LPS, mm).

    `axes` rows: right, down, ahead, of length 1. `centre_mm` is seen in the middle of the pane.
    """

    name: str
    kind: Literal["volume", "mip", "slice"]
    left: int
    top: int
    width: int
    height: int
    axes: Vector
    centre_mm: Vector
    pixel_mm: float

    def rays(self, affine: Vector, step_mm: float, coarse: int) -> npt.NDArray[np.float32]:
        """Origin, right, down, ahead in voxels, for pixels `coarse` times as large; k = 0 goes through the centre."""
        to_voxels = np.linalg.inv(affine)
        pixel = self.pixel_mm * coarse
        right, down, ahead = self.axes * [[pixel], [pixel], [step_mm]]
        corner = self.centre_mm - right * (self.width // coarse - 1) / 2 - down * (self.height // coarse - 1) / 2
        origin = to_voxels[:3, :3] @ corner + to_voxels[:3, 3]
        return np.stack([origin, *(to_voxels[:3, :3] @ v for v in (right, down, ahead))]).astype(np.float32)

    def to_view(self, affine: Vector) -> npt.NDArray[np.float32]:
        """Brings a gradient per voxel (x, y, z) to one per mm along right, down, ahead."""
        return np.ascontiguousarray(self.axes @ np.linalg.inv(affine[:3, :3]).T, np.float32)

    def describe(self, modality: str) -> dict[str, Any]:
        """What a page must know of it: place, geometry of its pixel (0, 0), the letters at its sides."""
        right, down = self.axes[0] * self.pixel_mm, self.axes[1] * self.pixel_mm
        origin = self.centre_mm - right * (self.width - 1) / 2 - down * (self.height - 1) / 2
        names = _TRACKER if modality == "US" else _PATIENT
        return {
            "name": self.name,
            "kind": self.kind,
            "box": [self.left, self.top, self.width, self.height],
            "origin_mm": origin.round(4).tolist(),
            "right_mm": right.round(6).tolist(),
            "down_mm": down.round(6).tolist(),
            "sides": [_towards(way, names) for way in (-self.axes[0], self.axes[0], -self.axes[1], self.axes[1])],
        }


def panes(view: View, affine: Vector, shape: Sequence[int]) -> list[Pane]:
    """Return the panes of `view` of a volume of `shape` (z, y, x)."""
    last = np.array(shape[::-1], np.float64) - 1
    middle = affine[:3, :3] @ (last / 2) + affine[:3, 3]
    sides_mm = np.abs(affine[:3, :3]) @ (last + 1)  # of the box along LPS around it
    at = middle if view.at_mm is None else np.array(view.at_mm)
    camera = _FRONT @ _rotation(view.rotation).T
    if view.mode != "slices":
        pixel = 0.8 * float(np.linalg.norm(sides_mm)) / min(view.width, view.height) / view.zoom  # corners are air
        kind: Literal["volume", "mip", "slice"] = "slice" if view.mode == "oblique" else view.mode
        centre = at if view.mode == "oblique" else middle
        centre = centre + camera[0] * view.pan_mm[0] + camera[1] * view.pan_mm[1]
        return [Pane(view.mode, kind, 0, 0, view.width, view.height, camera, centre, pixel)]
    width, height = view.width // 2 // UNIT * UNIT, view.height // 2 // UNIT * UNIT
    pixel = 1.15 * float(sides_mm.max()) / min(width, height) / view.zoom  # with room for the letters
    found = []
    for n, (name, axes) in enumerate([*_PLANES.items(), ("volume", camera)]):
        centre = middle + axes[0] * view.pan_mm[0] + axes[1] * view.pan_mm[1]
        if name != "volume":
            centre = centre + axes[2] * float(axes[2] @ (at - centre))
        place = (n % 2 * width, n // 2 * height, width, height)
        found.append(Pane(name, "volume" if name == "volume" else "slice", *place, axes, centre, pixel))
    return found


def _rotation(quaternion: tuple[float, ...]) -> Vector:
    """The matrix of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _towards(direction: Vector, names: tuple[tuple[str, str], ...]) -> str:
    """Letters for a direction, the nearest axis first; axes more than 72 degrees off are left out."""
    order = [axis for axis in np.argsort(-np.abs(direction)) if abs(direction[axis]) > 0.3]
    return "".join(names[axis][int(direction[axis] > 0)] for axis in order)
