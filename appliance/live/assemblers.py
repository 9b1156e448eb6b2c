# SPDX-License-Identifier: Apache-2.0
"""Which scan is assembled with what. Importing this compiles the kernels: seconds, once on each machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from appliance.frames import Scan
from appliance.imaging.assembled import Assembler
from appliance.imaging.stack_slices import SliceStack
from appliance.ultrasound.compound import Compound
from appliance.ultrasound.freehand import Freehand


def assembler_for(
    scan: Scan,
    most_voxels: int,
    spacing_mm: float,
    method: Literal["linear", "nearest"],
    clip_px: Sequence[int],
    fill_voxels: int,
) -> Assembler:
    """Return what assembles `scan`: the last four are for ultrasound, see `Compound` and `Freehand`."""
    if scan.modality == "US":
        return Freehand(Compound(spacing_mm, most_voxels, method), clip_px, fill_voxels)
    return SliceStack(most_voxels, hounsfield=scan.modality == "CT")
