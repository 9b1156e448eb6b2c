# SPDX-License-Identifier: Apache-2.0
"""What volumes are assembled from frames with, whatever they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from appliance.frames import Affine, Array, Frame


@dataclass(frozen=True, eq=False)
class Assembled:
    """One state of a volume; the fields are those of volume_message.Volume. `remarks` say what is not as it looks."""

    array: Array
    affine: Affine
    value_range: tuple[float, float]
    slope: float = 1.0
    intercept: float = 0.0
    filled: float = 1.0
    remarks: tuple[str, ...] = ()


class Assembler(Protocol):
    """One scan's. For one thread."""

    def add(self, frame: Frame) -> str:
        """Take a frame; return why it was left out, or an empty text."""

    def assembled(self, *, complete: bool) -> Assembled | None:
        """Return what is there now, new arrays; None where there is nothing yet. `complete`: no frame follows."""
