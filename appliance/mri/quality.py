# SPDX-License-Identifier: Apache-2.0
"""Acquisition faults found by rules on raw k-space, each with a reason in words.

Limits come from clean data: over real and simulated k-space (1 … 32 coils, R 1 … 4, odd and even sizes, noise over
two decades) no sample exceeds its 42 neighbours 2.1 times, near the centre of k-space 4.2 times.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding

Floats = NDArray[np.floating[Any]]
Kspace = NDArray[np.complex64]
Bools = NDArray[np.bool_]

RULES = ("spike", "coil_drop", "noisy_coil", "clipping", "ghosting", "signal_drop", "low_snr", "frozen")
HISTORY_FRAMES = 16  # frames that make the running baseline
READY_FRAMES = 3  # before that only the absolute rules judge
CORE_SPIKE = 2.5  # how much stricter the spike rule is near the centre of k-space, where the peak is steep
CORE_LEVEL = 0.05  # "near the centre": the neighbours reach this part of the largest neighbourhood
NOISE_ONLY = 1.5  # power of a coil's strongest lines over its noise; noise alone gives 1 ± 0.1
HAS_SIGNAL = 6.0  # the same ratio of a coil that surely sees the patient
FOREIGN_NOISE = 5.0  # noise amplitude over that of the other coils which no difference of gains explains
BURST = 4.0  # noise amplitude of one line over what that line usually has; chance gives at most 2
DISABLED_COIL = 0.1  # signal and noise amplitude against the other coils: not connected
CLIPPED_VALUES = 4  # values that equal the largest one exactly; floating point data never has two
CLIPPING_LINES = 16  # lines with the largest values, where clipping is looked for
CLIPPED_OVER_NOISE = 16.0  # a limit lower than this, against the noise, is not told from chance
MIN_COLUMNS = 16  # shorter lines have too few neighbours for the spike rule
MIN_NOISE_SAMPLES = 64  # fewer samples at the edge of k-space do not tell the noise


@dataclass(frozen=True)
class Limits:
    """Thresholds of the rules; amplitudes, not powers, except where dB is said."""

    spike: float = 4.0  # times the largest of the neighbours
    coil_drop: float = 0.3  # part of its usual signal that a coil must keep, against the other coils
    noisy_coil: float = 2.0  # times its usual noise, against the other coils
    ghosting: float = 0.1  # of the signal of the body
    signal_drop: float = 0.25  # part of the usual signal that may be lost
    low_snr_db: float = 6.0  # loss against the usual SNR


@dataclass(frozen=True)
class Levels:
    """One frame in a few numbers; powers per sample of the lines that make the image."""

    energy: float  # of the whole frame, calibration lines included
    lines: Floats  # (coil, line)
    edges: Floats  # (coil, line): the quieter of the two ends of each line
    noise: Floats  # (coil,); 0 where the data does not tell it
    signal: Floats  # (coil,): of the strongest lines, noise included
    brightest: NDArray[np.intp]  # where in the whole frame the largest values are

    @property
    def level(self) -> float:
        """Signal amplitude of the whole frame."""
        return float(np.sqrt(self.signal.mean()))

    @property
    def contrast(self) -> Floats:
        """Power of the strongest lines over noise, (coil,); 0 where the noise is not known."""
        return np.divide(self.signal, self.noise, out=np.zeros_like(self.signal), where=self.noise > 0)

    @property
    def snr_db(self) -> float | None:
        """Median over the coils; None when the noise is not known."""
        above = float(np.median(self.contrast)) - 1
        return 10 * float(np.log10(max(above, 1e-3))) if self.noise.all() else None


@dataclass
class Baseline:
    """Running statistics of one slice position; only clean frames enter."""

    rows: deque[Floats] = field(default_factory=lambda: deque(maxlen=HISTORY_FRAMES))
    usual: Floats | None = None  # median of (signal of each coil, noise of each coil, level, snr_db) …
    spread: Floats | None = None  # … and 1.48 MAD
    edges: Floats | None = None
    strongest: NDArray[np.intp] | None = None  # lines that carry most of the signal
    last_lines: Floats | None = None  # of the frame before, clean or not

    def accept(self, levels: Levels) -> None:
        """Take a clean frame."""
        scalars = [levels.level, levels.snr_db or 0.0]
        self.rows.append(np.concatenate([levels.signal, levels.noise, scalars]))
        self.edges = levels.edges if self.edges is None else 0.9 * self.edges + 0.1 * levels.edges
        if len(self.rows) >= READY_FRAMES:
            rows = np.stack(self.rows)
            self.usual = np.median(rows, axis=0)
            self.spread = 1.4826 * np.median(np.abs(rows - self.usual), axis=0)

    def forget(self) -> None:
        """Start anew: what was a change has become the normal state."""
        self.rows.clear()
        self.usual = self.spread = self.edges = None


def measure(kspace: Kspace, ky: NDArray[np.int64], imaging: Bools, baseline: Baseline) -> Levels:
    """Return the levels of `kspace` complex64 (coil, ky, kx) with its line indices; one pass over the data.

    `imaging` (line,) is false for lines that only calibrate: the baseline must not depend on them.
    """
    n_samples = kspace.shape[2]
    with np.errstate(all="ignore"):  # what is not finite is the finding, not the warning
        lines = np.vecdot(kspace, kspace).real / n_samples
        width = min(max(n_samples // 16, 1), 16)
        ends = kspace[:, :, :width], kspace[:, :, -width:]
        edges = np.minimum(*(np.vecdot(end, end).real for end in ends)) / width
        energy = float(lines.sum(dtype=np.float64))
    brightest = np.argsort(lines.max(axis=0))[-CLIPPING_LINES:]
    lines, edges, ky = lines[:, imaging], edges[:, imaging], ky[imaging]
    if baseline.strongest is None or not baseline.rows:
        baseline.strongest = np.argsort(np.median(lines, axis=0))[-max(1, len(ky) // 16) :]
    distance = np.abs(2 * ky - ky.min() - ky.max())
    outer = edges[:, 2 * distance >= distance.max()]
    known = outer.shape[1] * width >= MIN_NOISE_SAMPLES
    noise = np.median(outer, axis=1) if known else np.zeros(len(lines), np.float32)
    return Levels(energy, lines, edges, noise, lines[:, baseline.strongest].mean(axis=1), brightest)


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
        largest = float(np.abs(kspace).astype(np.float64).max())
        message = f"k-space values are out of any sensible range (largest {largest:.1e}); check the scanner's scaling"
        return [Finding("not_finite", message, "alarm", largest)]
    return [Finding("all_zero", "the frame holds only zeros; check the receiver and repeat the scan", "alarm")]


def find_spike(kspace: Kspace, ky: NDArray[np.int64], floor: float, limit: float) -> list[Finding] | None:
    """Find the strongest sample that stands alone among its neighbours (±2 lines, ±4 columns).

    `floor` is the lowest level expected anywhere. Near the centre of k-space the limit is CORE_SPIKE times as high:
    a spike there that does not exceed the signal around it so many times is not found. Returns None where samples
    have no neighbours to compare with (sparse sampling, very short lines).
    """
    peaks = np.abs(kspace[0])
    scratch = np.empty_like(peaks)
    for coil in kspace[1:]:
        np.maximum(peaks, np.abs(coil, out=scratch), out=peaks)
    if peaks.shape[1] < MIN_COLUMNS or 2 * np.count_nonzero(peaks) < peaks.size:
        return None
    around = np.maximum(_neighbours(peaks), floor)
    allowed = limit * around
    allowed[around > CORE_LEVEL * around.max()] *= CORE_SPIKE
    hits = peaks > allowed
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
    counts = np.count_nonzero(values >= rails[:, None] * np.float32(1 - 1e-6), axis=1)
    counts[rails <= CLIPPED_OVER_NOISE * np.sqrt(levels.noise)] = 0  # equal values in digitised noise mean nothing
    shared = (rails >= rails.max() * np.float32(1 - 1e-6)) & (counts > 0)  # converters of one kind have one limit
    together = shared & (int(counts[shared].sum()) >= CLIPPED_VALUES)
    clipped = np.flatnonzero((counts >= CLIPPED_VALUES) | together)
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
    times = np.sqrt(levels.noise / _lower_median(levels.noise))
    allowed = np.full(len(times), FOREIGN_NOISE)
    if baseline.usual is not None:
        rise = np.sqrt(levels.noise / np.maximum(baseline.usual[len(times) : 2 * len(times)], 1e-38))
        rise = rise / max(float(_lower_median(rise)), 1e-6)
        sooner = rise / limit > times / allowed
        times, allowed = np.where(sooner, rise, times), np.where(sooner, limit, allowed)
    noisy = [int(c) for c in np.flatnonzero(times > allowed)]
    found = [_noisy(c, float(times[c]), float(allowed[c]), "") for c in noisy]
    return found + _find_bursts(levels, ky, baseline, skip=noisy)


def _find_bursts(levels: Levels, ky: NDArray[np.int64], baseline: Baseline, skip: list[int]) -> list[Finding]:
    if baseline.edges is None or len(levels.noise) < 2:
        return []
    times = np.sqrt(levels.edges / np.maximum(baseline.edges, levels.noise[:, None]))
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


def _lower_median(values: Floats) -> Any:
    """The median; of an even count the smaller of the middle two, so that one bad coil of two is found."""
    return np.sort(values)[(len(values) - 1) // 2]


def _upper_median(values: Floats) -> Any:
    return np.sort(values)[len(values) // 2]


def find_dropped_coils(levels: Levels, baseline: Baseline, limit: float, noisy: set[int]) -> list[Finding]:
    """Find coils without data, with noise only, or with far less signal than usual, against the other coils."""
    n_coils = len(levels.signal)
    kept = np.sqrt(levels.signal / max(float(_upper_median(levels.signal)), 1e-38))
    quiet = np.sqrt(levels.noise / max(float(_upper_median(levels.noise)), 1e-38))
    contrast = levels.contrast
    others_see = float(_upper_median(contrast)) > HAS_SIGNAL
    part = np.ones(n_coils)
    if baseline.usual is not None:
        part = np.sqrt(levels.signal / np.maximum(baseline.usual[:n_coils], 1e-38))
        part = part / max(float(_upper_median(part)), 1e-38)
    found = []
    for coil in range(n_coils):
        silent = levels.lines[coil] == 0
        if silent.all() or (silent & (levels.lines > 0).any(axis=0)).any():
            message, measured = "gives no data" if silent.all() else "lost some lines", float(kept[coil])
        elif coil in noisy:
            continue
        elif part[coil] < limit:
            message, measured = f"fell to {100 * part[coil]:.0f} % of its usual signal", float(part[coil])
        elif levels.noise[coil] and (contrast[coil] < NOISE_ONLY) and others_see:
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
    snr_db, n_coils = levels.snr_db, len(levels.signal)
    if snr_db is not None and float(levels.contrast.max()) < NOISE_ONLY:
        message = "no coil shows any signal above the noise; check the transmitter and the patient's position"
        return [Finding("low_snr", message, "alarm", snr_db)]
    if baseline.usual is None or baseline.spread is None:
        return []
    *_, level, usual_snr_db = baseline.usual.tolist()
    *_, level_spread, snr_spread_db = baseline.spread.tolist()
    part = float(_upper_median(np.sqrt(levels.signal / np.maximum(baseline.usual[:n_coils], 1e-38))))
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
    found += find_dropped_coils(levels, baseline, limits.coil_drop, {int(f.where["coil"]) for f in noisy})
    if "clipping" in rules:
        found += find_clipping(kspace, levels)
    if "spike" in rules:
        floor = max(float(np.sqrt(levels.noise.max())), 1e-5 * float(np.sqrt(levels.signal.max())))
        spikes = find_spike(kspace, ky, floor, limits.spike)
        found += spikes or []
        unchecked += ["spike"] if spikes is None else []
    found = [f for f in found if f.kind in rules]
    if not found:
        found = [f for f in find_level_changes(levels, baseline, limits) if f.kind in rules]
    if not levels.noise.all():
        unchecked += ["noisy_coil", "low_snr"]
    return found, levels, unchecked
