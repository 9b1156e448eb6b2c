# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults found by rules on raw k-space, each with a reason in words.

Limits come from clean data: over real and simulated k-space (1 … 32 coils, R 1 … 4, odd and even sizes, noise over
two decades) no sample exceeds its 42 neighbours 2.1 times, near the centre of k-space 4.2 times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding
from appliance.mri.baseline import Baseline, Bools, Floats, Kspace, Levels, lower_median, measure, upper_median

RULES = ("spike", "coil_drop", "noisy_coil", "clipping", "ghosting", "signal_drop", "low_snr", "frozen")
CORE_SPIKE = 2.5  # how much stricter the spike rule is near the centre of k-space, where the peak is steep
CORE_LEVEL = 0.05  # "near the centre": the neighbours reach this part of the largest neighbourhood …
CORE_OVER_TYPICAL = 3.0  # … and so many times the typical one, which is noise
NOISE_ONLY = 1.5  # power of a coil's strongest lines over its noise; noise alone gives 1 ± 0.1
HAS_SIGNAL = 6.0  # the same ratio of a coil that surely sees the patient
FOREIGN_NOISE = 3.0  # noise amplitude over that of the other coils which no difference of gains explains
BURST = 4.0  # noise amplitude of one line over what that line usually has; chance gives at most 2
DISABLED_COIL = 0.1  # signal and noise amplitude against the other coils: not connected
CLIPPED_VALUES = 4  # values at the same largest magnitude; unclipped data hardly ever has two
CLIPPED_SAME = np.float32(1 - 1e-4)  # what "the same" is: 32767 and -32768 are
RAILS_16_BIT = (32767.0, 32768.0)  # two values here are enough
CLIPPED_OVER_NOISE = 5.0  # a limit lower than this, against the noise, is not told from chance
MIN_COLUMNS = 16  # shorter lines have too few neighbours for the spike rule


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rules; amplitudes, not powers, except where dB is said."""

    spike: float = 4.0  # times the largest of the neighbours
    coil_drop: float = 0.3  # part of its usual signal that a coil must keep, against the other coils
    noisy_coil: float = 2.0  # times its usual noise, against the other coils
    ghosting: float = 0.08  # of the signal of the body
    signal_drop: float = 0.25  # part of the usual signal that may be lost
    low_snr_db: float = 6.0  # loss against the usual SNR


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


def find_spike(kspace: Kspace, ky: NDArray[np.int64], floor: float, limit: float) -> list[Finding]:
    """Find the strongest sample that stands alone among its neighbours (±2 lines, ±4 columns).

    `floor` is the lowest level expected anywhere. Near the centre of k-space the limit is CORE_SPIKE times as high:
    a spike there that does not exceed the signal around it so many times is not found.
    """
    peaks = np.abs(kspace[0])
    scratch = np.empty_like(peaks)
    for coil in kspace[1:]:
        np.maximum(peaks, np.abs(coil, out=scratch), out=peaks)
    around = np.maximum(_neighbours(peaks), floor)
    hits = peaks > limit * around
    if hits.any():
        core = max(CORE_LEVEL * float(around.max()), CORE_OVER_TYPICAL * float(np.median(around)))
        hits &= (around < core) | (peaks > CORE_SPIKE * limit * around)
    n_hits = int(np.count_nonzero(hits))
    if not n_hits:
        return []
    ratio = np.where(hits, peaks / around, 0)
    line, column = (int(i) for i in np.unravel_index(int(ratio.argmax()), ratio.shape))
    coil_index, times = int(np.abs(kspace[:, line, column]).argmax()), float(ratio[line, column])
    more = f" ({n_hits - 1} more in this frame)" if n_hits > 1 else ""
    message = (
        f"RF spike in k-space on coil {coil_index}, line {ky[line]}, column {column}: {times:.0f} times the expected "
        f"level{more}; check for loose metal or arcing in the room"
    )
    where = {"coil": coil_index, "line": int(ky[line]), "column": column}
    return [Finding("spike", message, "alarm", times, limit, where)]


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


def find_clipping(kspace: Kspace, levels: Levels) -> list[Finding]:
    """Find values that sit exactly at the same largest magnitude, in one coil or over several."""
    values = np.abs(kspace[:, levels.brightest].view(np.float32).reshape(len(kspace), -1))
    rails = values.max(axis=1)
    counts = np.count_nonzero(values >= rails[:, None] * CLIPPED_SAME, axis=1)
    counts[rails <= CLIPPED_OVER_NOISE * np.sqrt(levels.noise)] = 0  # equal values in digitised noise mean nothing
    shared = (rails >= rails.max() * CLIPPED_SAME) & (counts > 0)  # converters of one kind have one limit
    needed = np.where(np.isin(rails, RAILS_16_BIT), 2, CLIPPED_VALUES)
    clipped = np.flatnonzero((counts >= needed) | (shared & (counts[shared].sum() >= needed)))
    if not len(clipped):
        return []
    worst = int(clipped[counts[clipped].argmax()])
    n_values = int(counts[clipped].sum())
    names = ", ".join(map(str, clipped[:8])) + (" …" if len(clipped) > 8 else "")
    message = (
        f"receiver overdriven on coil {names}: {n_values} values sit at its limit of {rails[worst]:.6g}; "
        "lower the receiver gain (repeat the prescan)"
    )
    where = {"coil": worst, "coils": len(clipped)}
    return [Finding("clipping", message, "alarm", n_values, CLIPPED_VALUES, where)]


def find_noisy_coils(levels: Levels, ky: NDArray[np.int64], baseline: Baseline, limit: float) -> list[Finding]:
    """Find coils that are noisier than usual or than the others, over the whole frame or on some lines."""
    if not levels.noise.all():
        return []
    if baseline.usual is None:
        times = np.sqrt(levels.noise / lower_median(levels.noise))
        times[levels.contrast > 0.25 * upper_median(levels.contrast)] = 1  # a coil of more gain sees as well as others
        limit = max(limit, FOREIGN_NOISE)
    else:
        times = np.sqrt(levels.noise / np.maximum(baseline.usual[len(levels.noise) : 2 * len(levels.noise)], 1e-38))
        times = times / max(float(lower_median(times)), 1.0)
    noisy = [int(c) for c in np.flatnonzero(times > limit)]
    found = [_noisy(c, float(times[c]), limit, "") for c in noisy]
    return found + _find_bursts(levels, ky, baseline, skip=noisy)


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
    return Finding("noisy_coil", message, "alarm", times, limit, {"coil": coil, **where})


def find_dropped_coils(levels: Levels, baseline: Baseline, limit: float, noisy: set[int]) -> list[Finding]:
    """Find coils without data, with noise only, or with far less signal than usual, against the other coils."""
    n_coils = len(levels.signal)
    kept = np.sqrt(levels.signal / max(float(upper_median(levels.signal)), 1e-38))
    quiet = np.sqrt(levels.noise / max(float(upper_median(levels.noise)), 1e-38))
    contrast = levels.contrast
    others_see = float(upper_median(contrast)) > HAS_SIGNAL
    part: Floats = np.ones(n_coils)
    if baseline.usual is not None:
        all_kept = baseline.kept(levels)
        others = float(upper_median(all_kept))
        if others > limit:  # else most coils lost their signal: no fault of one coil
            part = all_kept / min(others, 1.0)
    silent = levels.lines == 0
    lost = (silent & ~silent.all(axis=0)).sum(axis=1)  # lines that the other coils have
    found = []
    for coil in range(n_coils):
        if lost[coil]:
            some = f"gives no data on {lost[coil]} lines"
            message, measured = "gives no data" if silent[coil].all() else some, float(kept[coil])
        elif coil in noisy:
            continue
        elif part[coil] < limit:
            message, measured = f"fell to {100 * part[coil]:.0f} % of its usual signal", float(part[coil])
        elif others_see and 0 < contrast[coil] < NOISE_ONLY and quiet[coil] < FOREIGN_NOISE:
            message, measured = "gives only noise", float(kept[coil])
        elif kept[coil] < DISABLED_COIL and quiet[coil] < DISABLED_COIL and levels.noise.all():
            message, measured = f"has {100 * kept[coil]:.1f} % of the signal of the others", float(kept[coil])
        else:
            continue
        message = f"coil {coil} {message}; check its plug and whether it is selected"
        found.append(Finding("coil_drop", message, "alarm", measured, limit, {"coil": coil}))
    return found


def find_level_changes(levels: Levels, baseline: Baseline, limits: Limits) -> list[Finding]:
    """Find a loss of signal in most coils, a loss of SNR, or no signal at all."""
    snr_db = levels.snr_db
    if snr_db is not None and float(levels.contrast.max()) < NOISE_ONLY:
        message = "no coil shows any signal above the noise; check the transmitter and the patient's position"
        return [Finding("low_snr", message, "alarm", snr_db)]
    if baseline.usual is None or baseline.spread is None:
        return []
    *_, level, usual_snr_db = baseline.usual.tolist()
    *_, level_spread, snr_spread_db = baseline.spread.tolist()
    part = float(upper_median(baseline.kept(levels)))
    if 1 - part > max(limits.signal_drop, 5 * level_spread / max(level, 1e-38)):
        message = (
            f"the signal fell to {100 * part:.0f} % of that of the last frames; "
            "check that the patient did not move and that the transmitter is stable"
        )
        return [Finding("signal_drop", message, "alarm", part, 1 - limits.signal_drop)]
    loss_db = usual_snr_db - snr_db if snr_db is not None else 0.0
    if loss_db > max(limits.low_snr_db, 5 * snr_spread_db):
        message = f"the SNR is {loss_db:.0f} dB lower than in the last frames; check for interference in the room"
        return [Finding("low_snr", message, "warning", loss_db, limits.low_snr_db)]
    return []


def find_frozen(levels: Levels, baseline: Baseline) -> list[Finding]:
    """Find data that repeats the frame before, bit by bit: real data has noise."""
    last, baseline.last_lines = baseline.last_lines, levels.lines
    if last is None or not np.array_equal(last, levels.lines):
        return []
    message = (
        "the data is the same as in the frame before; the display may not show what happens now: check the scanner"
    )
    return [Finding("frozen", message, "alarm")]


def judge(
    kspace: Kspace,
    ky: NDArray[np.int64],
    calibration_only: Bools,
    baseline: Baseline,
    limits: Limits,
    rules: tuple[str, ...] = RULES,
) -> tuple[list[Finding], Levels, list[str]]:
    """Return what is wrong with one frame, its levels, and the rules that this data gives no basis for.

    `kspace` is complex64 (coil, ky, kx), host, and is not modified; `ky` (line,) ascending. The caller decides
    whether the frame enters `baseline`.
    """
    levels = measure(kspace, ky, ~calibration_only, baseline)
    found = find_unusable(kspace, ky, levels)
    if found:
        return found, levels, []
    found, unchecked = find_frozen(levels, baseline), []
    imaging_ky = ky[~calibration_only]
    noisy = find_noisy_coils(levels, imaging_ky, baseline, limits.noisy_coil)
    found += noisy
    noisy_coils = {int(finding.where["coil"]) for finding in noisy}
    found += find_dropped_coils(levels, baseline, limits.coil_drop, noisy_coils)
    if "clipping" in rules:
        found += find_clipping(kspace, levels)
    if levels.sparse or kspace.shape[2] < MIN_COLUMNS:
        unchecked.append("spike")
    elif "spike" in rules:
        floor = max(float(np.sqrt(levels.noise.max())), 1e-5 * float(np.sqrt(levels.signal.max())))
        spikes = find_spike(kspace, ky, floor, limits.spike)
        found += [spike for spike in spikes if spike.where["coil"] not in noisy_coils]
    found = [f for f in found if f.kind in rules]
    if not found:
        found = [f for f in find_level_changes(levels, baseline, limits) if f.kind in rules]
    if not levels.noise.all():
        unchecked += ["noisy_coil", "low_snr"]
    return found, levels, unchecked
