# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults found by rules on raw k-space, each with a reason in words.

A rule returns what it measured (see appliance/mri/rules.py; None where the frame gives no basis) and its findings.
Limits come from clean data: over real and simulated k-space (1 … 32 coils, R 1 … 4, odd and even sizes, noise over
two decades) no sample exceeds its 42 neighbours 2.1 times, near the centre of k-space 4.2 times.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding
from appliance.mri.baseline import Baseline, Levels, lower_median, upper_median
from appliance.mri.rules import Bools, Floats, Found, Kspace

CORE_SPIKE = 2.5  # how much stricter the spike rule is near the centre of k-space, where the peak is steep
CORE_LEVEL = 0.05  # "near the centre": the neighbours reach this part of the largest neighbourhood …
CORE_OVER_TYPICAL = 3.0  # … and so many times the typical one, which is noise
NOISE_ONLY = 1.5  # power of a coil's strongest lines over its noise; noise alone gives 1 ± 0.1
HAS_SIGNAL = 6.0  # the same ratio of a coil that surely sees the patient
FOREIGN_NOISE = 3.0  # noise amplitude over that of the other coils which no difference of gains explains
BURST = 4.0  # noise amplitude of one line over what that line usually has; chance gives at most 2
DISABLED_COIL = 0.1  # signal and noise amplitude against the other coils: not connected
CLIPPED_SAME = np.float32(1 - 1e-4)  # what "the same" is: 32767 and -32768 are
RAILS_16_BIT = (32767.0, 32768.0)  # two values here are enough
CLIPPED_OVER_NOISE = 5.0  # a limit lower than this, against the noise, is not told from chance
MIN_COLUMNS = 16  # shorter lines have too few neighbours for the spike rule


def find_unusable(kspace: Kspace, ky: NDArray[np.int64], levels: Levels) -> list[Finding]:
    """Find NaN, infinities, absurd scales and frames without any data: nothing else can be judged then."""
    if np.isfinite(levels.energy) and levels.energy > 0:
        return []
    bad = np.argwhere(~np.isfinite(kspace))
    if len(bad):
        coil, line, column = (int(i) for i in bad[0])
        message = (
            f"{len(bad)} k-space values are not numbers, first on coil {coil}, line {ky[line]}, column {column}; "
            "the image is not valid: repeat the scan, call service if it stays"
        )
        where = {"coil": coil, "line": int(ky[line]), "column": column}
        return [Finding("not_finite", message, "alarm", len(bad), 0, where)]
    if kspace.any():
        largest = float(np.abs(kspace.astype(np.complex128)).max())  # in float32 it may overflow
        message = f"k-space values are out of any sensible range (largest {largest:.1e}); check the scanner's scaling"
        return [Finding("not_finite", message, "alarm", largest)]
    return [Finding("all_zero", "the frame holds only zeros; check the receiver and repeat the scan", "alarm")]


def find_spike(
    kspace: Kspace, ky: NDArray[np.int64], imaging: Bools, levels: Levels, baseline: Baseline, limit: float
) -> Found:
    """Find the strongest sample that stands alone among its neighbours (±2 lines, ±4 columns).

    Around the strongest column the difference from the last frames is judged, once there are some. Near the centre
    of k-space the limit is CORE_SPIKE times as high: a spike there that does not exceed the signal around it so many
    times is not found.
    """
    scale = 1 / max(float(levels.signal.max()), 1e-38)
    peaks = _over_coils(kspace, scale)
    if levels.block is not None and baseline.usual is not None and baseline.block and baseline.recent is not None:
        columns = baseline.block[1]
        changed = _over_coils(levels.block - baseline.recent, scale)
        peaks[imaging, columns] = np.minimum(peaks[imaging, columns], changed)  # what is lost is no spike
    floor = max(float(np.sqrt(levels.noise.max() * scale)), 1e-5)  # the lowest level expected anywhere
    around = np.maximum(_neighbours(peaks), floor)
    core = max(CORE_LEVEL * float(around.max()), CORE_OVER_TYPICAL * float(np.median(around)))
    ratio = peaks / around
    strict = np.where(around < core, ratio, ratio / CORE_SPIKE)
    worst = int(strict.argmax())
    measured = float(strict.flat[worst])
    if measured <= limit:
        return measured, []
    line, column = (int(i) for i in np.unravel_index(worst, ratio.shape))
    coil_index, times = int(np.abs(kspace[:, line, column]).argmax()), float(ratio[line, column])
    n_more = int(np.count_nonzero(strict > limit)) - 1
    more = f" ({n_more} more in this frame)" if n_more else ""
    message = (
        f"RF spike in k-space on coil {coil_index}, line {ky[line]}, column {column}: {times:.0f} times the expected "
        f"level{more}; check for loose metal or arcing in the room"
    )
    where = {"coil": coil_index, "line": int(ky[line]), "column": column}
    return measured, [Finding("spike", message, "warning", times, limit, where)]


def _over_coils(kspace: Kspace, scale: float) -> Floats:
    """Fourth root of the sum of fourth powers: it shows what one coil has, and better what all have."""
    total = np.zeros(kspace.shape[1:], np.float32)
    for coil in kspace:
        power = (coil.real**2 + coil.imag**2) * np.float32(scale)
        total += np.square(power, out=power)
    return np.asarray(np.sqrt(np.sqrt(total, out=total), out=total))


def _neighbours(peaks: Floats) -> Floats:
    """Largest value within ±2 lines and ±4 columns, without the sample and those beside it on its line."""
    n_lines, n_columns = peaks.shape
    padded = np.zeros((n_lines + 4, n_columns + 8), peaks.dtype)
    padded[2:-2, 4:-4] = peaks
    triple = np.maximum(padded[:, :-2], padded[:, 1:-1])
    np.maximum(triple, padded[:, 2:], out=triple)  # columns x … x+2
    sides = np.maximum(triple[:, :n_columns], triple[:, 6 : 6 + n_columns])  # x-4 … x-2 and x+2 … x+4
    whole = np.maximum(sides, triple[:, 3 : 3 + n_columns])
    pair = np.maximum(whole[:-1], whole[1:])
    around = np.maximum(pair[:n_lines], pair[3 : 3 + n_lines])
    return np.maximum(around, sides[2:-2], out=around)


def find_clipping(kspace: Kspace, levels: Levels, limit: float) -> Found:
    """Find values that sit exactly at the same largest magnitude, in one coil or over several."""
    values = np.abs(kspace[:, levels.brightest].view(np.float32).reshape(len(kspace), -1))
    rails = values.max(axis=1)
    counts = np.count_nonzero(values >= rails[:, None] * CLIPPED_SAME, axis=1)
    counts[rails <= CLIPPED_OVER_NOISE * np.sqrt(levels.noise)] = 0  # equal values in digitised noise mean nothing
    shared = (rails >= rails.max() * CLIPPED_SAME) & (counts > 0)  # converters of one kind have one limit
    most = np.where(np.isin(rails, RAILS_16_BIT), 1, limit)
    clipped = np.flatnonzero((counts > most) | (shared & (counts[shared].sum() > most)))
    if not len(clipped):
        return float(counts.max()), []
    worst = int(clipped[counts[clipped].argmax()])
    n_values = int(counts[clipped].sum())
    names = ", ".join(map(str, clipped[:8])) + (" …" if len(clipped) > 8 else "")
    message = (
        f"receiver overdriven on coil {names}: {n_values} values sit at its limit of {rails[worst]:.6g}; "
        "lower the receiver gain (repeat the prescan)"
    )
    where = {"coil": worst, "coils": len(clipped)}
    return float(n_values), [Finding("clipping", message, "warning", n_values, limit, where)]


def find_noisy_coils(levels: Levels, ky: NDArray[np.int64], baseline: Baseline, limit: float) -> Found:
    """Find coils that are noisier than usual or than the others, over the whole frame or on some lines."""
    if not levels.noise.all():
        return None, []
    if baseline.usual is None:
        times = np.sqrt(levels.noise / lower_median(levels.noise))
        times[levels.contrast > 0.25 * upper_median(levels.contrast)] = 1  # a coil of more gain sees as well as others
        limit = max(limit, FOREIGN_NOISE)
    else:
        times = np.sqrt(levels.noise / np.maximum(baseline.usual[len(levels.noise) : 2 * len(levels.noise)], 1e-38))
        times = times / max(float(lower_median(times)), 1.0)
    noisy = [int(c) for c in np.flatnonzero(times > limit)]
    found = [_noisy(c, float(times[c]), limit, "") for c in noisy]
    measured = None if baseline.usual is None else float(times.max())
    return measured, found + _find_bursts(levels, ky, baseline, skip=noisy)


def _find_bursts(levels: Levels, ky: NDArray[np.int64], baseline: Baseline, skip: list[int]) -> list[Finding]:
    if len(levels.noise) < 2:
        return []
    usual = levels.noise[:, None] * np.maximum(lower_median(levels.edges / levels.noise[:, None]), 1)
    if baseline.edges is not None:
        usual = np.maximum(usual, baseline.edges)
    times = np.sqrt(levels.edges / usual)
    found = []
    for coil in set(np.flatnonzero(times.max(axis=1) > BURST).tolist()) - set(skip):
        hit = np.flatnonzero(times[coil] > BURST)
        if (times > BURST)[:, hit].all(axis=0).any():
            continue  # every coil at once is no fault of this coil
        first, last = int(ky[hit[0]]), int(ky[hit[-1]])
        lines = f" on line {first}" if first == last else f" on lines {first} to {last}"
        found.append(_noisy(coil, float(times[coil].max()), BURST, lines, line=first, last_line=last))
    return found


def _noisy(coil: int, times: float, limit: float, lines: str, **where: int) -> Finding:
    message = (
        f"coil {coil} is {times:.1f} times as noisy as expected{lines}; "
        "check its plug and cable, and for interference in the room"
    )
    return Finding("noisy_coil", message, "warning", times, limit, {"coil": coil, **where})


def find_dropped_coils(levels: Levels, baseline: Baseline, limit: float, noisy: set[int]) -> Found:
    """Find coils without data, with noise only, or with far less signal than usual, against the other coils."""
    n_coils = len(levels.signal)
    kept = np.sqrt(levels.signal / max(float(upper_median(levels.signal)), 1e-38))
    quiet = np.sqrt(levels.noise / max(float(upper_median(levels.noise)), 1e-38))
    contrast = levels.contrast
    others_see = float(upper_median(contrast)) > HAS_SIGNAL
    loss: Floats = np.zeros(n_coils)
    if baseline.usual is not None:
        all_kept = baseline.kept(levels)
        others = float(upper_median(all_kept))
        if others > 1 - limit:  # else most coils lost their signal: no fault of one coil
            loss = 1 - all_kept / min(others, 1.0)
    silent = levels.lines == 0
    gaps = (silent & ~silent.all(axis=0)).sum(axis=1)  # lines that the other coils have
    found = []
    for coil in range(n_coils):
        if gaps[coil]:
            message = "gives no data" if silent[coil].all() else f"gives no data on {gaps[coil]} lines"
        elif coil in noisy:
            continue
        elif loss[coil] > limit:
            message = f"fell to {100 * (1 - loss[coil]):.0f} % of its usual signal"
        elif others_see and 0 < contrast[coil] < NOISE_ONLY and quiet[coil] < FOREIGN_NOISE:
            message = "gives only noise"
        elif kept[coil] < DISABLED_COIL and quiet[coil] < DISABLED_COIL and levels.noise.all():
            message = f"has {100 * kept[coil]:.1f} % of the signal of the others"
        else:
            continue
        measured = float(max(loss[coil], 1 - kept[coil])) if not gaps[coil] else 1.0
        message = f"coil {coil} {message}; check its plug and whether it is selected"
        found.append(Finding("coil_drop", message, "warning", measured, limit, {"coil": coil}))
    if found:
        return max(finding.measured for finding in found), found
    return (None if baseline.usual is None else float(loss.max())), []


def any_signal(levels: Levels) -> bool:
    """Whether any coil has more than noise; true where the noise is not known."""
    return levels.snr_db is None or float(levels.contrast.max()) >= NOISE_ONLY


def find_low_snr(levels: Levels, baseline: Baseline, limit: float) -> Found:
    """Find no signal at all, or a loss of SNR against the usual frame."""
    if levels.snr_db is None:
        return None, []
    if not any_signal(levels):
        message = "no coil shows any signal above the noise; check the transmitter and the patient's position"
        loss_db = -levels.snr_db + (0.0 if baseline.usual is None else float(baseline.usual[-1]))
        return loss_db, [Finding("low_snr", message, "warning", loss_db, limit)]
    if baseline.usual is None or baseline.spread is None:
        return None, []
    loss_db = float(baseline.usual[-1]) - levels.snr_db
    limit = max(limit, 5 * float(baseline.spread[-1]))
    if loss_db <= limit:
        return loss_db, []
    message = f"the SNR is {loss_db:.0f} dB lower than in the last frames; check for interference in the room"
    return loss_db, [Finding("low_snr", message, "warning", loss_db, limit)]


def find_signal_drop(levels: Levels, baseline: Baseline, limit: float) -> Found:
    """Find a loss of signal in most coils."""
    if baseline.usual is None or baseline.spread is None:
        return None, []
    part = float(upper_median(baseline.kept(levels)))
    limit = max(limit, 5 * float(baseline.spread[-2]) / max(float(baseline.usual[-2]), 1e-38))
    if 1 - part <= limit:
        return 1 - part, []
    message = (
        f"the signal fell to {100 * part:.0f} % of that of the last frames; "
        "check that the patient did not move and that the transmitter is stable"
    )
    return 1 - part, [Finding("signal_drop", message, "warning", 1 - part, limit)]


def find_slice_dropout(lost: float, others_lost: list[float], slice_index: int, limit: float) -> Found:
    """Find a slice that lost signal while the other slices (at least one) kept theirs; parts of each one's usual."""
    others_kept = max(1 - float(np.median(others_lost)), 1e-3)
    measured = 1 - (1 - lost) / others_kept
    if measured <= limit:
        return measured, []
    message = (
        f"slice {slice_index} lost {100 * measured:.0f} % of its signal while the others kept theirs; "
        "check for motion during this slice and repeat the volume"
    )
    return measured, [Finding("slice_dropout", message, "warning", measured, limit, {"slice": slice_index})]


def find_frozen(levels: Levels, baseline: Baseline) -> list[Finding]:
    """Find data that repeats the frame before, bit by bit: real data has noise."""
    last, baseline.last_lines = baseline.last_lines, levels.lines
    if last is None or not np.array_equal(last, levels.lines):
        return []
    message = (
        "the data is the same as in the frame before; the display may not show what happens now: check the scanner"
    )
    return [Finding("frozen", message, "warning")]
