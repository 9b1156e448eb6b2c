# SPDX-License-Identifier: Apache-2.0
"""Rules on whole lines of raw k-space: lines that are missing, and interference of one frequency."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from appliance.frames import Finding
from appliance.mri.baseline import Baseline, Levels
from appliance.mri.rules import Bools, Floats, Found, Kspace

ZIPPER_LINES = 64  # outermost lines that are looked at; more only cost time
ZIPPER_BESIDE = 25  # columns whose median is the level that is expected
MIN_LINES = 16  # fewer do not tell a lasting interference, or a gap, from chance
MOST_TIMES = 1000.0  # said of a line without any data


def find_zipper(kspace: Kspace, ky: NDArray[np.int64], imaging: Bools, levels: Levels, limit: float) -> Found:
    """Find interference of one frequency: one column of the image that is bright in (almost) every outer line.

    The median over lines leaves out spikes and anatomy, whose signal in outer lines comes and goes.
    """
    outer = _outer_lines(ky, imaging)
    if len(outer) < MIN_LINES or kspace.shape[2] < ZIPPER_BESIDE or levels.sparse:
        return None, []
    spectra = scipy.fft.ifft(kspace[:, outer], axis=2, norm="ortho")  # k-space to image, as in appliance/mri/fourier.py
    noise = np.where(levels.noise > 0, levels.noise, max(float(levels.noise.max()), 1e-38)).astype(np.float32)
    parts = spectra.view(np.float32).reshape(*spectra.shape, 2)
    power = np.einsum("clxp,clxp,c->lx", parts, parts, 1 / noise, optimize=False)
    column_power = np.median(power, axis=0)
    beside = np.maximum(median_filter(column_power, ZIPPER_BESIDE, mode="wrap"), 1e-38)
    times = np.sqrt(scipy.fft.fftshift(column_power / beside))
    column, measured = int(times.argmax()), float(times.max())
    if measured <= limit:
        return measured, []
    message = (
        f"interference of one frequency: column {column} of the image is {measured:.1f} times as bright as expected "
        "in every outer line (RF zipper); check that the door of the room is shut, and for electronics inside"
    )
    return measured, [Finding("zipper", message, "warning", measured, limit, {"column": column})]


def _outer_lines(ky: NDArray[np.int64], imaging: Bools) -> NDArray[np.intp]:
    """Rows of the imaging lines farther out than half way, at most ZIPPER_LINES of them, ascending."""
    rows = np.flatnonzero(imaging)
    distance = np.abs(2 * ky[rows] - ky[rows].min() - ky[rows].max())
    far = rows[2 * distance >= distance.max()]
    return np.asarray(far[:: max(1, len(far) // ZIPPER_LINES)])


def find_line_drop(levels: Levels, ky: NDArray[np.int64], baseline: Baseline, limit: float) -> Found:
    """Find the line with the least signal in all coils against the two on each side of it. `ky` as in `levels`.

    And of their usual signal it must have less than those, once that is known: lines of some anatomy have little.
    """
    if len(ky) < MIN_LINES or levels.sparse:
        return None, []
    noise = np.where(levels.noise > 0, levels.noise, 1.0)
    line = np.sqrt((levels.lines / noise[:, None]).sum(axis=0))
    times = _times_less(line)
    if baseline.usual is not None and baseline.lines is not None:
        usual = np.sqrt((baseline.lines / noise[:, None]).sum(axis=0))
        times = np.minimum(times, _times_less(line / np.maximum(usual, 1e-38)))
    at = int(times.argmax())
    measured = min(float(times[at]), MOST_TIMES)
    if measured <= limit:
        return measured, []
    what = "no data" if line[at + 2] == 0 else f"1/{measured:.1f} of the signal of those beside it"
    n_more = int(np.count_nonzero(times > limit)) - 1
    more = f" ({n_more} more in this frame)" if n_more else ""
    message = (
        f"line {ky[at + 2]} has {what} in all coils{more}; check the receiver chain and the transmitter, "
        "and repeat the scan"
    )
    return measured, [Finding("line_drop", message, "warning", measured, limit, {"line": int(ky[at + 2])})]


def _times_less(line: Floats) -> Floats:
    """How many times its own the signal beside each line is; the first and last two are left out."""
    before, after = np.maximum(line[1:-3], line[:-4]), np.maximum(line[3:-1], line[4:])
    return np.asarray(np.minimum(before, after) / np.maximum(line[2:-2], line.max() / MOST_TIMES**2))
