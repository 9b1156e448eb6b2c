# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults found by rules on the magnitude image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import uniform_filter1d

from appliance.faults.not_finite import find_not_finite
from appliance.frames import Finding
from appliance.mri.baseline import Baseline, Levels
from appliance.mri.quality import find_frozen, find_signal_drop
from appliance.mri.rules import Bools, Floats, Found

TISSUE = 0.5  # of the mean of what is brighter than the mean; stronger ghosts than this look like a body
MIN_WRAP_PX = 32


def measure_image(image: Floats) -> Levels:
    """Return the levels of an image (… y, x), where there is no k-space: as one coil without known noise."""
    with np.errstate(all="ignore"):
        exact = image.astype(np.float64)  # scanners send 16-bit integers too
        rows = np.vecdot(exact, exact).reshape(1, -1) / image.shape[-1]
        signal = rows.mean(axis=1)
    return Levels(float(rows.sum()), rows, rows, np.zeros(1), signal, np.arange(0))


def find_unusable_image(image: Floats) -> list[Finding]:
    """Find pixels that are not numbers and an image without any."""
    found = find_not_finite(image)
    if not found and not image.any():
        return [Finding("all_zero", "the image holds only zeros; check the receiver and repeat the scan", "alarm")]
    return found


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


def find_ghosting(image: Floats, limit: float) -> Found:
    """Find ghosts by their level as `ghost_level` gives it."""
    ghost = ghost_level(image)
    if ghost is None or ghost <= limit:
        return ghost, []
    message = (
        f"ghosts of {100 * ghost:.0f} % of the body's signal along the phase direction; "
        "check for motion of the patient and, in EPI, the phase correction"
    )
    return ghost, [Finding("ghosting", message, "warning", ghost, limit)]


def find_wrap(image: Floats, limit: float) -> Found:
    """Find tissue at both ends of the field of view along y: what leaves it at one end comes in at the other.

    `image` is magnitude (y, x) with the phase direction along y. An image without any background is not judged.
    """
    if min(image.shape) < MIN_WRAP_PX:
        return None, []
    blocks = _block_means(image)
    background, bright = float(np.percentile(blocks, 10)), blocks[blocks > blocks.mean()]
    body = float(bright.mean()) - background if bright.size else 0.0
    if body <= 0:
        return None, []
    rows = max(1, len(image) // 48)
    first, last = (image[end].mean(axis=0, dtype=np.float64) for end in (slice(0, rows), slice(-rows, None)))
    width = max(4, image.shape[1] // 16)  # so wide must what folds over be; noise is averaged away
    both = np.minimum(*(uniform_filter1d(end, width) for end in (first, last)))
    measured = float(both.max() - background) / body
    if measured <= limit:
        return measured, []
    message = (
        f"the body reaches over both ends of the field of view along the phase direction ({100 * measured:.0f} % of "
        "its signal there), and folds over; enlarge the field of view or switch on phase oversampling"
    )
    return measured, [Finding("wrap", message, "warning", measured, limit)]


def _block_means(image: Floats) -> Floats:
    """Means of 8 × 8 pixels, without what is left at the ends."""
    n_y, n_x = (n // 8 for n in image.shape)
    return np.asarray(image[: n_y * 8, : n_x * 8].reshape(n_y, 8, n_x, 8).mean(axis=(1, 3), dtype=np.float64))


def judge_image(
    image: Floats, baseline: Baseline, thresholds: Mapping[str, float]
) -> tuple[list[Finding], Levels, float | None]:
    """Return what is wrong with an image that comes without k-space, its levels, and the part of signal lost."""
    levels = measure_image(image)
    found = find_unusable_image(image) or find_frozen(levels, baseline)
    if found:
        return found, levels, None
    lost, found = find_signal_drop(levels, baseline, thresholds["signal_drop"])
    return found, levels, lost
