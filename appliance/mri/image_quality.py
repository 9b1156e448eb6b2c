# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults found by rules on the magnitude image."""

from __future__ import annotations

import numpy as np

from appliance.frames import Finding
from appliance.mri.baseline import Baseline, Bools, Floats, Levels
from appliance.mri.quality import Limits, find_frozen, find_level_changes

TISSUE = 0.5  # of the mean of what is brighter than the mean; stronger ghosts than this look like a body


def measure_image(image: Floats) -> Levels:
    """Return the levels of an image (… y, x), where there is no k-space: as one coil without known noise."""
    with np.errstate(all="ignore"):
        exact = image.astype(np.float64)  # scanners send 16-bit integers too
        rows = np.vecdot(exact, exact).reshape(1, -1) / image.shape[-1]
        signal = rows.mean(axis=1)
    return Levels(float(rows.sum()), rows, rows, np.zeros(1), signal, np.arange(0))


def find_unusable_image(image: Floats) -> list[Finding]:
    """Find pixels that are not numbers and an image without any."""
    with np.errstate(all="ignore"):
        total = float(image.sum(dtype=np.float64))
    if not np.isfinite(total):
        n_bad = int(np.count_nonzero(~np.isfinite(image)))
        return [Finding("not_finite", f"{n_bad} pixels are not numbers; do not use this image", "alarm", n_bad)]
    if total == 0 and not image.any():
        return [Finding("all_zero", "the image holds only zeros; check the receiver and repeat the scan", "alarm")]
    return []


def ghost_level(image: Floats) -> float | None:
    """Return the signal outside the body at half a field of view along y, over the background, as part of the body's.

    None where the body, or what looks like one, leaves no room to see a ghost. `image` is magnitude (y, x).

    References: percent signal ghosting of the ACR phantom test guidance, with the N/2 ghost of echo-planar imaging.
    """
    step_y, step_x = (max(1, n // 64) for n in image.shape)
    small = image[: image.shape[0] // (2 * step_y) * 2 * step_y : step_y, ::step_x].astype(np.float64)
    if small.size < 256:
        return None
    bright = small[small > small.mean()]
    if not bright.size:
        return None
    tissue = small > TISSUE * bright.mean()
    body = _between(tissue, 0) | _between(tissue, 1)
    ghost = np.roll(body, len(body) // 2, axis=0) & ~body
    background = ~(ghost | body)
    if min(np.count_nonzero(ghost), np.count_nonzero(background)) < 0.02 * small.size:
        return None
    level = float(small[ghost].mean() - small[background].mean()) / float(small[body].mean())
    return max(level, 0.0)


def _between(mask: Bools, axis: int) -> Bools:
    """What lies between the first and the last true element along `axis`."""
    after = np.logical_or.accumulate(mask, axis=axis)
    before = np.flip(np.logical_or.accumulate(np.flip(mask, axis), axis=axis), axis)
    return np.asarray(after & before)


def find_ghosting(ghost: float | None, limit: float) -> list[Finding]:
    """Warn of a ghost level as `ghost_level` gives it."""
    if ghost is None or ghost <= limit:
        return []
    message = (
        f"ghosts of {100 * ghost:.0f} % of the body's signal along the phase direction; "
        "check for motion of the patient and, in EPI, the phase correction"
    )
    return [Finding("ghosting", message, "warning", ghost, limit)]


def judge_image(image: Floats, baseline: Baseline, limits: Limits) -> tuple[list[Finding], Levels]:
    """Return what is wrong with an image that comes without k-space, and its levels."""
    levels = measure_image(image)
    found = find_unusable_image(image)
    return found or find_frozen(levels, baseline) or find_level_changes(levels, baseline, limits), levels
