# SPDX-License-Identifier: Apache-2.0
"""Rules on how the lines of one frame fit each other: motion during the frame, and ghosts of odd and even lines.

Coils see the patient from different places, so that a line follows from its neighbours with weights that depend on the
coils only. They are fitted once, to the usual frame. A line that was acquired of a patient who lay elsewhere, or with
another phase, does not fit its neighbours, whatever the anatomy.

Reference: the weights are those of GRAPPA (Griswold et al. 2002, DOI 10.1002/mrm.10171); a line's own data is compared
with them as in SPIRiT (Lustig, Pauly 2010, DOI 10.1002/mrm.22428).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding
from appliance.mri.rules import Floats, Found, Kspace

REGULARISATION = 1e-3  # of the mean eigenvalue


class Fit(NamedTuple):
    """How the inner lines of a block follow from their neighbours."""

    residual: Floats  # (line,): amplitude of what does not follow, per sample
    turn: Floats  # (line,): phase of a line against what follows, rad …
    weight: Floats  # … and how much signal says so


def fit_weights(centre: Kspace) -> NDArray[np.complex64]:
    """Return weights, (2 * 3 * coil, coil), from `centre` (coil, line, column) of the usual frame."""
    sources, targets = _neighbours(centre), _inner(centre)
    normal = sources.conj().T @ sources
    normal[np.diag_indices(len(normal))] += REGULARISATION * np.trace(normal).real / len(normal) + 1e-30
    return np.asarray(np.linalg.solve(normal, sources.conj().T @ targets), np.complex64)


def _inner(centre: Kspace) -> Kspace:
    return centre[:, 1:-1, 1:-1].reshape(len(centre), -1).T


def _neighbours(centre: Kspace) -> Kspace:
    """Three samples on the line before and on the line after, of every coil: (sample, 2 * 3 * coil)."""
    n_lines, n_columns = centre.shape[1] - 2, centre.shape[2] - 2
    shifted = [centre[:, i : i + n_lines, j : j + n_columns] for i in (0, 2) for j in (0, 1, 2)]
    return np.concatenate(shifted).reshape(6 * len(centre), -1).T


def expected_lines(centre: Kspace, weights: NDArray[np.complex64]) -> Kspace:
    """Return what the inner samples of `centre` should be by their neighbours, (coil, line - 2, column - 2)."""
    n_coils, n_lines, n_columns = centre.shape
    return np.asarray((_neighbours(centre) @ weights).T.reshape(n_coils, n_lines - 2, n_columns - 2))


def fit_lines(centre: Kspace, weights: NDArray[np.complex64]) -> Fit:
    """Compare the inner lines of `centre` with what follows from their neighbours."""
    n_lines = centre.shape[1] - 2
    expected, actual = _neighbours(centre) @ weights, _inner(centre)
    expected, actual = (a.reshape(n_lines, -1) for a in (expected, actual))
    residual = np.linalg.norm(actual - expected, axis=1) / np.sqrt(actual.shape[1])
    both = np.vecdot(expected, actual)
    return Fit(residual, np.angle(both), np.abs(both))


def find_inconsistency(fit: Fit, usual: Floats, ky: NDArray[np.int64], limit: float) -> Found:
    """Find lines that do not fit their neighbours as they usually do. `ky` (line,) of the inner lines."""
    times = fit.residual / np.maximum(usual, 1e-30)
    pairs = (times[1:] + times[:-1]) / 2  # a jump shows on both sides of it
    at = int(pairs.argmax())
    measured = float(pairs[at])
    if measured <= limit:
        return measured, []
    n_lines = int(np.count_nonzero(times > limit))
    message = (
        f"{n_lines} lines do not fit their neighbours, most of all line {ky[at]} ({measured:.1f} times the usual "
        "difference): the patient moved during this frame, or the phase was disturbed; repeat the scan if it is to "
        "be used"
    )
    return measured, [Finding("motion", message, "warning", measured, limit, {"line": int(ky[at]), "lines": n_lines})]


def find_odd_even_ghost(fit: Fit, usual_turn: Floats, limit: float) -> Found:
    """Find the phase between odd and even lines, as the level of the ghost that it makes half a field of view away."""
    sign = 1 - 2 * (np.arange(len(fit.turn)) % 2)
    turn = np.angle(np.exp(1j * (fit.turn - usual_turn)))
    phase = abs(float((sign * turn * fit.weight).sum() / max(fit.weight.sum(), 1e-30)))
    measured = float(np.tan(min(phase, 3.0) / 2))
    if measured <= limit:
        return measured, []
    message = (
        f"odd and even lines differ by {np.degrees(phase):.0f} degrees in phase: a ghost of {100 * measured:.0f} % "
        "half a field of view away; in EPI repeat the phase correction, else look for vibration or a faulty gradient"
    )
    return measured, [Finding("odd_even", message, "warning", measured, limit)]
