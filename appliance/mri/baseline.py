# SPDX-License-Identifier: Apache-2.0
"""What is normal in this scan: the levels of one frame, and their running statistics over clean frames."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.mri.consistency import Comparison, compare_lines
from appliance.mri.rules import Bools, Floats, Kspace

HISTORY_FRAMES = 16  # frames that make the running baseline
READY_FRAMES = 3  # before that only the absolute rules judge
SEEN = 3.0  # usual signal power over noise from which on a loss of it can be told
MIN_NOISE_SAMPLES = 32  # fewer samples at the edge of k-space do not tell the noise
SETTLED_FRAMES = 10  # a running mean is one of about so many frames
BLOCK_COLUMNS, BLOCK_COILS = 64, 8  # of every line, what tells a shift and motion; more only costs time
NEWEST_PART = 0.6  # of the newest clean frame in the lines to compare with: they are those of the last two or three
RECENT_NOISE = NEWEST_PART / (2 - NEWEST_PART)  # power of the noise in their mean, part of one frame's
CLIPPING_LINES = 8  # lines with the largest values, where clipping is looked for
N_BASELINES = 128  # slice positions, contrasts and sampling patterns that are remembered
ADOPT_FRAMES = 50  # after so many frames in a row a changed signal level is the new normal


def lower_median(values: Floats) -> Any:
    """Median over the first axis; of an even count the smaller one, so that one noisy coil of two is found."""
    return np.sort(values, axis=0)[(len(values) - 1) // 2]


def upper_median(values: Floats) -> Any:
    """Median; of an even count the larger one, so that one dropped coil of two is found."""
    return np.sort(values)[len(values) // 2]


@dataclass(frozen=True)
class Levels:
    """One frame in a few numbers; powers per sample of the lines that make the image."""

    energy: float  # of the whole frame, calibration lines included
    lines: Floats  # (coil, line)
    edges: Floats  # (coil, line): the quieter of the two ends of each line
    noise: Floats  # (coil,); 0 where the data does not tell it
    signal: Floats  # (coil,): of the strongest lines, noise included
    brightest: NDArray[np.intp]  # lines of the whole frame that hold the largest values
    sparse: bool = False  # most samples within the lines were not acquired
    block: Kspace | None = None  # (coil, line, column) of the strongest coils around the strongest column
    comparison: Comparison | None = None  # with the last clean frames' blocks, once that can be told

    @property
    def level(self) -> float:
        """Signal amplitude of the whole frame."""
        return float(np.sqrt(self.signal.mean()))

    @cached_property
    def net(self) -> Floats:
        """Signal without the noise in it, (coil,)."""
        return np.maximum(self.signal - self.noise, 0)

    @cached_property
    def contrast(self) -> Floats:
        """Power of the strongest lines over noise, (coil,); 0 where the noise is not known."""
        return np.divide(self.signal, self.noise, out=np.zeros_like(self.signal), where=self.noise > 0)

    @property
    def snr_db(self) -> float | None:
        """Of the median coil; None when the noise is not known."""
        above = float(lower_median(self.contrast)) - 1
        return 10 * float(np.log10(max(above, 1e-3))) if self.noise.all() else None


@dataclass
class Baseline:
    """Running statistics of one slice position; only clean frames enter."""

    rows: deque[Floats] = field(default_factory=lambda: deque(maxlen=HISTORY_FRAMES))
    usual: Floats | None = None  # median of (signal of each coil, noise of each coil, level, snr_db) …
    spread: Floats | None = None  # … and 1.48 MAD
    edges: Floats | None = None  # running means
    lines: Floats | None = None
    strongest: NDArray[np.intp] | None = None  # lines that carry most of the signal
    block: tuple[NDArray[np.intp], slice] | None = None  # coils and columns of the blocks
    recent: Kspace | None = None  # running mean of the blocks
    last_lines: Floats | None = None  # of the frame before, clean or not

    def accept(self, levels: Levels) -> None:
        """Take a clean frame."""
        scalars = [levels.level, levels.snr_db or 0.0]
        self.rows.append(np.concatenate([levels.net, levels.noise, scalars]))
        part = max(1 / SETTLED_FRAMES, 1 / len(self.rows))
        self.edges, self.lines = _running(self.edges, levels.edges, part), _running(self.lines, levels.lines, part)
        self.recent = _running(self.recent, levels.block, NEWEST_PART)
        if len(self.rows) >= READY_FRAMES:
            rows = np.stack(self.rows)
            self.usual = lower_median(rows)
            self.spread = 1.4826 * lower_median(np.abs(rows - self.usual))

    def kept(self, levels: Levels) -> Floats:
        """Part of its usual signal amplitude that each coil still has, (coil,); 1 where noise would hide a loss."""
        assert self.usual is not None
        n_coils = len(levels.signal)
        usual, noise = self.usual[:n_coils], self.usual[n_coils : 2 * n_coils]
        known = usual > SEEN * np.maximum(noise, levels.noise)
        return np.sqrt(np.divide(levels.net, usual, out=np.ones(n_coils), where=known))

    def forget(self) -> None:
        """Start anew: what was a change has become the normal state."""
        self.rows.clear()
        self.usual = self.spread = self.edges = self.lines = self.recent = None


def _running(mean: Any, value: Any, part: float) -> Any:
    """Running mean, in which the newest value has a `part`."""
    if mean is None or value is None:
        return value
    return np.float32(1 - part) * mean + np.float32(part) * value


def measure(kspace: Kspace, ky: NDArray[np.int64], imaging: Bools, baseline: Baseline) -> Levels:
    """Return the levels of `kspace` complex64 (coil, ky, kx) with its line indices; one pass over the data.

    `imaging` (line,) is false for lines that only calibrate: the baseline must not depend on them.
    """
    n_samples = kspace.shape[2]
    with np.errstate(all="ignore"):  # what is not finite is the finding, not the warning
        lines = np.vecdot(kspace, kspace).real.astype(np.float64) / n_samples
        width = min(max(n_samples // 16, 1), 16)
        ends = kspace[:, :, :width], kspace[:, :, -width:]
        left, right = (np.vecdot(end, end).real.astype(np.float64) / width for end in ends)
        energy = float(lines.sum())
    some = kspace[:, ::8, ::8].any(axis=0)  # enough to tell
    sparse = bool(2 * np.count_nonzero(some) < some.size)
    brightest = np.argsort(lines.max(axis=0))[-CLIPPING_LINES:]
    lines, left, right, ky = lines[:, imaging], left[:, imaging], right[:, imaging], ky[imaging]
    if baseline.strongest is None or not baseline.rows:
        baseline.strongest = np.argsort(np.log(lines + 1e-38).mean(axis=0))[-max(1, len(ky) // 16) :]
    distance = np.abs(2 * ky - ky.min() - ky.max())
    outer = ((left + right) / 2)[:, 2 * distance >= distance.max()]
    known = outer.shape[1] * width >= MIN_NOISE_SAMPLES and not sparse
    noise = lower_median(outer.T) if known else np.zeros(len(lines))
    signal = lines[:, baseline.strongest].mean(axis=1)
    block = _block(kspace if imaging.all() else kspace[:, imaging], signal, baseline)
    comparison = None
    if baseline.usual is not None and baseline.recent is not None and baseline.block and known and np.isfinite(energy):
        coils, _ = baseline.block
        usual_noise = baseline.usual[len(noise) : 2 * len(noise)]  # known better
        comparison = compare_lines(block, baseline.recent, np.maximum(noise, usual_noise)[coils], RECENT_NOISE)
    return Levels(energy, lines, np.minimum(left, right), noise, signal, brightest, sparse, block, comparison)


def _block(kspace: Kspace, signal: Floats, baseline: Baseline) -> Kspace:
    """Return the columns around the strongest sample, of the strongest coils: the same place in every frame."""
    if baseline.block is None or not baseline.rows:
        assert baseline.strongest is not None
        coils = np.sort(np.argsort(signal)[-BLOCK_COILS:])
        column = int(np.abs(kspace[:, int(np.median(baseline.strongest))]).sum(axis=0).argmax())
        baseline.block = coils, slice(max(column - BLOCK_COLUMNS // 2, 0), column + BLOCK_COLUMNS // 2)
    coils, columns = baseline.block
    return np.asarray(kspace[coils, :, columns])


class Baselines:
    """One `Baseline` for each key, the least recently used ones forgotten."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, Baseline] = OrderedDict()
        self._changed: Counter[Hashable] = Counter()  # frames in a row with another signal level

    def get(self, key: Hashable) -> Baseline:
        """Return the baseline of `key`, new where there is none."""
        baseline = self._of.setdefault(key, Baseline())
        self._of.move_to_end(key)
        if len(self._of) > N_BASELINES:
            self._changed.pop(self._of.popitem(last=False)[0], None)
        return baseline

    def learn(self, key: Hashable, levels: Levels, *, clean: bool, changed: bool) -> None:
        """Let a clean frame in; start anew after ADOPT_FRAMES of a `changed` signal level in a row."""
        if clean:
            self.get(key).accept(levels)
        self._changed[key] = self._changed[key] + 1 if changed else 0
        if self._changed[key] >= ADOPT_FRAMES:
            self.get(key).forget()
            self._changed[key] = 0
