# SPDX-License-Identifier: Apache-2.0
"""What a value looks like: presets for each modality, and their tables for one volume and one step of the rays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from appliance.imaging.volume_message import Volume

N_ENTRIES = 4096

Point = tuple[float, float, float, float, float]  # value, red, green, blue, opacity of 1 mm


@dataclass(frozen=True)
class Preset:
    """Colours and opacities by value, linear between points; `window` is what is black and white in slices.

    Values are HU for CT, otherwise parts (0..1) of the volume's `value_range`. The first point is transparent.
    """

    name: str
    points: tuple[Point, ...]
    window: tuple[float, float]


_CT = (
    Preset(
        "bone",
        ((150, 0.85, 0.60, 0.45, 0), (300, 0.95, 0.82, 0.66, 0.25), (700, 1, 0.96, 0.88, 0.7), (2000, 1, 1, 1, 0.9)),
        (-500, 1300),
    ),
    Preset(
        "soft tissue",
        (
            (-200, 0.75, 0.45, 0.35, 0), (-60, 0.85, 0.60, 0.45, 0.02), (60, 0.90, 0.55, 0.45, 0.12),
            (180, 1, 0.88, 0.78, 0.25), (1000, 1, 1, 1, 0.8),
        ),
        (-160, 240),
    ),
    Preset(
        "vessels",
        ((130, 0.6, 0.1, 0.05, 0), (220, 0.85, 0.25, 0.15, 0.3), (400, 1, 0.6, 0.4, 0.6), (900, 1, 0.95, 0.85, 0.8)),
        (-100, 700),
    ),
)  # fmt: skip
_MR = (
    Preset("surface", ((0.12, 0.5, 0.5, 0.5, 0), (0.35, 0.8, 0.8, 0.8, 0.35), (1, 1, 1, 1, 0.9)), (0, 1)),
    Preset("glass", ((0.05, 0.4, 0.5, 0.6, 0), (0.5, 0.8, 0.85, 0.9, 0.015), (1, 1, 1, 1, 0.15)), (0, 1)),
    Preset("bright", ((0.45, 0.7, 0.4, 0.2, 0), (0.7, 1, 0.75, 0.5, 0.3), (1, 1, 1, 0.95, 0.8)), (0, 1)),
)
_US = (
    Preset("surface", ((0.25, 0.45, 0.3, 0.15, 0), (0.5, 0.85, 0.65, 0.4, 0.3), (1, 1, 0.95, 0.85, 0.8)), (0, 1)),
    Preset("glass", ((0.08, 0.3, 0.4, 0.5, 0), (0.5, 0.8, 0.8, 0.75, 0.03), (1, 1, 1, 1, 0.25)), (0, 1)),
)


def check_values(volume: Volume) -> None:
    """Raise ValueError where no preset could tell what a stored value means."""
    numbers = (volume.slope, volume.intercept, *volume.value_range)
    if not volume.slope > 0 or not np.isfinite(numbers).all():
        raise ValueError(
            f"volume: slope {volume.slope!r}, intercept {volume.intercept!r}, value range {volume.value_range!r}; "
            "finite numbers and a slope above 0 are needed: mend the sender"
        )


def presets(modality: str) -> tuple[Preset, ...]:
    """The presets that serve `modality` (a DICOM code); the first is the default."""
    return {"CT": _CT, "US": _US}.get(modality, _MR)


def find_preset(modality: str, name: str) -> Preset:
    """Return the preset called `name`, or the modality's default where it has none of that name."""
    choice = presets(modality)
    return next((preset for preset in choice if preset.name == name), choice[0])


def stored(volume: Volume, value: float) -> float:
    """Where a preset's value lies among the stored values of `volume`."""
    if volume.modality == "CT":
        return (value - volume.intercept) / volume.slope
    low, high = volume.value_range
    return low + value * max(high - low, 1.0)


def window(volume: Volume, preset: Preset) -> tuple[float, float]:
    """Stored values that are black and white."""
    return stored(volume, preset.window[0]), stored(volume, preset.window[1])


@dataclass(frozen=True)
class Table:
    """Red, green, blue (0..1) and opacity of one step, (n, 4) float32, for stored value ``low + index / scale``."""

    rows: npt.NDArray[np.float32]
    low: float
    scale: float


def colour_table(volume: Volume, preset: Preset, step_mm: float) -> Table:
    """The table of `preset` for samples `step_mm` apart (Beer and Lambert: opacity 1 - (1 - a) ** step)."""
    points = np.array(preset.points, np.float64)
    values = np.linspace(points[0, 0], points[-1, 0], N_ENTRIES)
    rows = np.stack([np.interp(values, points[:, 0], points[:, column]) for column in range(1, 5)], axis=1)
    rows[:, 3] = 1 - (1 - rows[:, 3]) ** step_mm
    low, high = stored(volume, values[0]), stored(volume, values[-1])
    return Table(rows.astype(np.float32), low, (N_ENTRIES - 1) / (high - low))


def seen_blocks(
    table: Table, lowest: npt.NDArray[np.generic], highest: npt.NDArray[np.generic]
) -> npt.NDArray[np.bool_]:
    """In which blocks something is not transparent: a value between `lowest` and `highest` has opacity."""
    opaque_before = np.concatenate([[0], np.cumsum(table.rows[:, 3] > 0)])
    seen: npt.NDArray[np.bool_] = (
        opaque_before[_entry(table, highest, 0.01) + 1] > opaque_before[_entry(table, lowest, -0.01)]
    )
    return seen


def _entry(table: Table, values: npt.NDArray[np.generic], more: float) -> npt.NDArray[np.int32]:
    """The entry that a ray finds for each stored value, and for `more` than it: its rounding is its own."""
    place = (values.astype(np.float32) - np.float32(table.low)) * np.float32(table.scale) + np.float32(more)
    entries: npt.NDArray[np.int32] = np.clip(place, 0, len(table.rows) - 1).astype(np.int32)
    return entries
