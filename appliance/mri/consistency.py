# SPDX-License-Identifier: Apache-2.0
"""Rules on how the lines of a frame compare with those of the last clean frames: a shift, motion during it, ghosts.

In the first frames of a scan there are none. Then lines are compared with those beside them: coils see the patient from
different places, so that a line follows from its neighbours, with weights that depend on the coils only.

A patient who lies elsewhere turns the phase of every line as one shift does. A patient who moved during the frame does
so for some of its lines only, or turned, and then these lines hold other values. A beating heart, breathing from frame
to frame and a contrast agent change a small part of each line's signal, and all lines alike.

References: phase and shift, Ehman, Felmlee 1989, DOI 10.1148/radiology.173.1.2781017; the phase between odd and even
lines, Bruder et al. 1992, DOI 10.1002/mrm.1910230211; a line from its neighbours, GRAPPA (Griswold et al. 2002, DOI
10.1002/mrm.10171).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding
from appliance.mri.rules import Floats, Found, Kspace

RUN_PART = 8  # a run of lines is such a part of them: a jump leaves longer ones, breathing hardly shorter ones
FEWEST_LINES = 4  # of a run
OVER_NOISE = 2.0  # power of a run over that of the noise in it, which is known to some percent only, …
SIGNAL_PART = 0.02  # … and part of the whole signal that it holds; of a run with less, less is said
NEAR_LINES, NEAR_COLUMNS = 32, 16  # to each side of the strongest sample, where phases are looked for
MIN_SIDE = 8  # lines and columns; fewer do not tell
REGULARISATION = 1e-2  # of the mean eigenvalue
FOLLOWS = 0.45  # correlation of lines with what follows from those beside them; with less, phases are chance


class Comparison(NamedTuple):
    """A frame's lines against the usual ones."""

    per_line: float  # phase from line to line and from column to column, rad, of a shift …
    per_column: float
    odd_even: float  # … and between odd and even lines, rad
    differs: Floats  # (run,): part of the signal of each run of lines, by its first line
    n_lines: int  # of a run

    def shift(self, ky: NDArray[np.int64], n_columns: int) -> tuple[float, float]:
        """Return the shift along x and y in pixels of the acquired matrix, whose lines are `ky`."""
        step = int(np.median(np.diff(ky)))
        along_y = -self.per_line * (ky[-1] - ky[0] + step) / step / (2 * np.pi)
        return -self.per_column * n_columns / (2 * np.pi), float(along_y)


def compare_lines(block: Kspace, usual: Kspace, noise: Floats, usual_noise: float) -> Comparison | None:
    """Compare `block` (coil, line, column) with the usual one.

    `noise` (coil,) is the power of a sample's noise, of which the usual block has the part `usual_noise`. None where
    there is too little to compare.
    """
    if min(block.shape[1:]) < MIN_SIDE or not usual.any():
        return None
    cross = (block * usual.conj()).sum(axis=0)
    per_line, per_column = _slopes(cross)
    n_lines, n_columns = cross.shape
    straight = np.exp(-1j * per_line * np.arange(n_lines)) * (cross @ np.exp(-1j * per_column * np.arange(n_columns)))
    odd_even = _odd_even_phase(straight)
    sign = np.arange(n_lines) % 2 - 0.5
    line_noise = n_columns * float(noise.sum())
    power = _mean_power(block, usual, line_noise, usual_noise)
    n_run = max(FEWEST_LINES, n_lines // RUN_PART)
    enough = max(OVER_NOISE * n_run * line_noise, SIGNAL_PART * float(power.sum()))
    fits = (straight * np.exp(-1j * odd_even * sign), cross.sum(axis=1))  # shifted as a whole, or not at all
    differs = min((_differs(power, fit, n_run, enough) for fit in fits), key=np.max)
    return Comparison(per_line, per_column, odd_even, differs, n_run)


def _slopes(cross: NDArray[np.complexfloating[Any, Any]]) -> tuple[float, float]:
    """Phase from line to line and from column to column around the strongest sample."""
    near = cross[_around(np.abs(cross))]
    near = near / np.sqrt(np.abs(near) + 1e-38)  # not that sample alone: its signal changes with every heart beat
    along_x = (near[:, 1:] * near[:, :-1].conj()).sum()
    along_y = (near[2:] * near[:-2].conj()).sum()  # over two lines: odd and even ones may differ
    return float(np.angle(along_y)) / 2, float(np.angle(along_x))


def _around(level: Floats) -> tuple[slice, slice]:
    """Lines and columns around the strongest sample."""
    line, column = (int(i) for i in np.unravel_index(int(level.argmax()), level.shape))
    return (
        slice(max(line - NEAR_LINES, 0), line + NEAR_LINES),
        slice(max(column - NEAR_COLUMNS, 0), column + NEAR_COLUMNS),
    )


def _odd_even_phase(lines: NDArray[np.complexfloating[Any, Any]]) -> float:
    """Phase of odd lines against even ones, -pi/2 … pi/2: of each line against those beside it, free of slow phase."""
    turned = lines[1:-1] ** 2 * (lines[:-2] * lines[2:]).conj()
    turned /= np.maximum(np.abs(turned), 1e-38) ** 0.75  # weighted by amplitude
    turned[1::2] = turned[1::2].conj()  # the first inner line is an odd one
    return float(np.angle(turned.sum())) / 2


def _mean_power(block: Kspace, usual: Kspace, noise: float, usual_noise: float) -> Floats:
    """Power of the lines of both without its noise, at one level: a loss of signal is no motion."""
    now, before = (np.vecdot(b, b).real.sum(axis=0, dtype=np.float64) for b in (block, usual))
    now, before = now - noise, before - noise * usual_noise
    level = np.sqrt(max(float(now.sum()), 1e-38) / max(float(before.sum()), 1e-38))
    return np.asarray((now / level + before * level) / 2)


def _differs(power: Floats, fit: NDArray[np.complexfloating[Any, Any]], n_run: int, enough: float) -> Floats:
    """Part of the power of each run that differs: 0 the same, 1 nothing alike, 2 the opposite."""
    along = (fit * np.exp(-1j * np.angle(fit.sum()))).real
    whole, other = (np.convolve(values, np.ones(n_run), "valid") for values in (power, power - along))
    return np.asarray(other / np.maximum(whole, enough))


def find_motion(comparison: Comparison, ky: NDArray[np.int64], limit: float) -> Found:
    """Find lines that differ from the usual ones otherwise than the whole frame. `ky` (line,)."""
    first = int(comparison.differs.argmax())
    measured = float(comparison.differs[first])
    if measured <= limit:
        return measured, []
    first_line, last_line = int(ky[first]), int(ky[first + comparison.n_lines - 1])
    message = (
        f"lines {first_line} to {last_line} differ by {100 * min(measured, 1):.0f} % from the last frames, and not as "
        "by a shift of the whole: the patient moved during this frame or turned, or the phase was disturbed; repeat "
        "the scan if it is to be used"
    )
    where = {"line": first_line, "last_line": last_line}
    return measured, [Finding("motion", message, "warning", measured, limit, where)]


def phase_by_neighbours(block: Kspace) -> float | None:
    """Return the phase between odd and even lines of `block` (coil, line, column), -pi/2 … pi/2, from it alone.

    Odd lines follow from even ones with the same weights as even lines from odd ones, but for twice that phase. None
    where lines do not follow from each other well enough: one coil, few coils for the acceleration, too little data.
    """
    near = block[(slice(None), *_around(np.abs(block).sum(axis=0)))]
    if len(near) < 2 or min(near.shape[1:]) < 2 * MIN_SIDE:
        return None
    (odd, odd_lines), (even, even_lines) = (_beside(near, first) for first in (0, 1))
    by_odd, by_even = _weights(odd, odd_lines), _weights(even, even_lines)
    follows = min(_alike(odd @ by_even, odd_lines), _alike(even @ by_odd, even_lines))
    return float(np.angle(np.vdot(by_even, by_odd))) / 2 if follows > FOLLOWS else None


def _beside(near: Kspace, first: int) -> tuple[Kspace, Kspace]:
    """Three samples on each line beside the inner lines `first`, `first` + 2, … (sample, 6 coil), and they."""
    n_coils, n_lines, n_columns = near.shape
    beside = [near[:, i : n_lines - 2 + i, j : n_columns - 2 + j] for i in (0, 2) for j in (0, 1, 2)]
    own = near[:, 1:-1, 1:-1][:, first::2].reshape(n_coils, -1).T
    return np.concatenate(beside)[:, first::2].reshape(6 * n_coils, -1).T, own


def _weights(beside: Kspace, own: Kspace) -> Kspace:
    normal = beside.conj().T @ beside
    normal[np.diag_indices(len(normal))] += REGULARISATION * np.trace(normal).real / len(normal) + 1e-30
    return np.asarray(np.linalg.solve(normal, beside.conj().T @ own))


def _alike(one: Kspace, other: Kspace) -> float:
    """Their correlation, whatever their phase: 1 at most."""
    return float(abs(np.vdot(one, other)) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-38))


def find_odd_even_ghost(phase: float, limit: float) -> Found:
    """Find the `phase` between odd and even lines, rad, as the level of the ghost that it makes half a view away."""
    phase = abs(phase)
    measured = float(np.tan(phase / 2))
    if measured <= limit:
        return measured, []
    message = (
        f"odd and even lines differ by {np.degrees(phase):.0f} degrees in phase: a ghost of {100 * measured:.0f} % "
        "half a field of view away; in EPI repeat the phase correction, else look for vibration or a faulty gradient"
    )
    return measured, [Finding("odd_even", message, "warning", measured, limit)]


def find_displacement(comparison: Comparison, ky: NDArray[np.int64], n_columns: int, limit: float) -> Found:
    """Find a shift of the patient against the last frames, from the slope of the phase that it makes in k-space.

    A shift by d turns the phase of k-space by 2π k d / N; coils stay where they are, so that a shift of many pixels
    reads a little too small.
    """
    shift_x, shift_y = comparison.shift(ky, n_columns)
    measured = float(np.hypot(shift_y, shift_x))
    if measured <= limit:
        return measured, []
    message = (
        f"the patient moved by about {measured:.1f} pixels ({shift_x:+.1f} along x, {shift_y:+.1f} along y) against "
        "the last frames; check the patient and repeat the localiser if planning depends on it"
    )
    where = {"shift_x": round(shift_x, 2), "shift_y": round(shift_y, 2)}
    return measured, [Finding("displacement", message, "warning", measured, limit, where)]
