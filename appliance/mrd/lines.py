# SPDX-License-Identifier: Apache-2.0
"""The lines of one frame, gathered in the order of arrival and given out in the order of k-space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError


@dataclass(frozen=True)
class Readout:
    """Which samples of a line go where: ``row[to] = samples[take]``, the k-space centre falling at ``n // 2``."""

    take: slice
    to: slice


def place_readout(
    n_samples: int, discard_pre: int, discard_post: int, centre_sample: int, n_columns: int, reverse: bool
) -> Readout:
    """Place a line of `n_samples` into `n_columns`.

    `centre_sample` counts from the first sample sent, discarded ones included; an asymmetric echo thus leaves columns
    empty on one side. A centre of 0 on a line that fills all columns was not filled in. Samples that would lie outside
    are cut off. Raises PeerError when more samples remain than there are columns, or none would lie inside.
    """
    first, last = discard_pre, n_samples - discard_post
    if not 0 < last - first <= n_columns:
        raise PeerError(
            f"mrd: line of {n_samples} samples, {discard_pre} and {discard_post} of them to discard, "
            f"does not fit into {n_columns} encoded columns"
        )
    if centre_sample == 0 and last - first == n_columns:
        centre_sample = first + n_columns // 2
    shift = n_columns // 2 - centre_sample
    begin, end = max(first, -shift), min(last, n_columns - shift)
    if reverse:  # sample i becomes n_samples - 1 - i, the centre with it
        shift = n_columns // 2 - (n_samples - 1 - centre_sample)
        begin, end = max(n_samples - last, -shift), min(n_samples - first, n_columns - shift)
    if begin >= end:
        raise PeerError(f"mrd: centre sample {centre_sample} of {n_samples} leaves no sample in {n_columns} columns")
    to = slice(begin + shift, end + shift)
    if not reverse:
        return Readout(slice(begin, end), to)
    stop = n_samples - 1 - end
    return Readout(slice(n_samples - 1 - begin, stop if stop >= 0 else None, -1), to)


@dataclass(frozen=True, eq=False)
class Gathered:
    """A frame's lines, `ky` ascending, with what was wrong with them."""

    kspace: NDArray[np.complex64]  # (coil, ky, kx)
    ky: NDArray[np.int64]
    calibration_only: NDArray[np.bool_]
    not_finite: NDArray[np.int64]  # lines left out because they hold NaN or Inf
    repeated: list[int]  # lines that came again; the first is kept
    all_zero: bool


class Lines:
    """Gathers lines of one shape. `capacity` is a guess of how many will come; right guesses save a copy."""

    def __init__(self, n_coils: int, n_lines: int, n_columns: int, capacity: int) -> None:
        self._shape = (n_coils, n_columns)
        self._seen = np.zeros(n_lines, bool)
        self._ky = np.empty(n_lines, np.int64)
        self._calibration_only = np.empty(n_lines, bool)
        self._kspace: NDArray[np.complex64] = np.empty((n_coils, min(capacity, n_lines), n_columns), np.complex64)
        self._repeated: list[int] = []
        self.n = 0
        self.n_imaging = 0

    @property
    def n_bytes(self) -> int:
        """Memory held."""
        return self._kspace.nbytes

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which lines of the encoded matrix have come."""
        return self._seen

    def imaging_ky(self) -> NDArray[np.int64]:
        """Return the lines that have come and do not only calibrate, in the order of arrival."""
        return self._ky[: self.n][~self._calibration_only[: self.n]]

    def add(
        self,
        ky: NDArray[np.int64],
        calibration_only: NDArray[np.bool_],
        data: NDArray[np.complex64],
        readout: Readout,
    ) -> None:
        """Copy lines in. `ky` (n,) lies within the matrix; `data` is (n, coil, sample)."""
        if self._seen[ky].any() or (len(ky) > 1 and not (ky[1:] > ky[:-1]).all()):
            ky, calibration_only, data = self._without_repeats(ky, calibration_only, data)
        end = self.n + len(ky)
        if end > self._kspace.shape[1]:
            self._grow(end)
        if readout.to != slice(0, self._shape[1]):
            self._kspace[:, self.n : end] = 0
        self._kspace[:, self.n : end, readout.to] = data[:, :, readout.take].transpose(1, 0, 2)
        self._ky[self.n : end] = ky
        self._calibration_only[self.n : end] = calibration_only
        self._seen[ky] = True
        self.n_imaging += len(ky) - int(np.count_nonzero(calibration_only))
        self.n = end

    def _without_repeats(
        self, ky: NDArray[np.int64], calibration_only: NDArray[np.bool_], data: NDArray[np.complex64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.complex64]]:
        first = np.zeros(len(ky), bool)
        first[np.unique(ky, return_index=True)[1]] = True
        first &= ~self._seen[ky]
        known = set(self._repeated)
        self._repeated += [line for line in dict.fromkeys(ky[~first].tolist()) if line not in known]
        return ky[first], calibration_only[first], data[first]

    def _grow(self, least: int) -> None:
        n_coils, n_columns = self._shape
        grown = np.empty((n_coils, min(max(least, 2 * self.n), len(self._seen)), n_columns), np.complex64)
        grown[:, : self.n] = self._kspace[:, : self.n]
        self._kspace = grown

    def gather(self) -> Gathered:
        """Return the lines in order, those with NaN or Inf left out. Nothing may be added afterwards."""
        ky = self._ky[: self.n]
        kspace = self._kspace[:, : self.n]
        values = kspace.view(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            energy = np.vecdot(values, values).sum(axis=0)
        good = np.isfinite(energy)
        if not good.all():  # or so large that its square is not
            good |= np.isfinite(values).all(axis=(0, 2))
        not_finite = np.sort(ky[~good])
        order = np.flatnonzero(good)
        order = order[np.argsort(ky[order], kind="stable")]
        if len(order) != self._kspace.shape[1] or not (order[1:] > order[:-1]).all():
            kspace = np.take(kspace, order, axis=1)
        return Gathered(
            kspace=kspace,
            ky=ky[order],
            calibration_only=self._calibration_only[order],
            not_finite=not_finite,
            repeated=self._repeated,
            all_zero=not energy.any() and not kspace.any(),
        )
