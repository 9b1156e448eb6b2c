# SPDX-License-Identifier: Apache-2.0
"""Where samples of a line go, against a plain loop over the samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import PeerError
from appliance.mrd.lines import Lines, Readout, place_readout

ALL = Readout(slice(0, 4), slice(0, 4))


def by_hand(line: np.ndarray, pre: int, post: int, centre: int, n_columns: int, reverse: bool) -> np.ndarray:
    """Sample i lies at i - centre from the centre of k-space; a reversed line runs the other way."""
    row = np.zeros(n_columns, line.dtype)
    for i in range(pre, len(line) - post):
        column = n_columns // 2 + (centre - i if reverse else i - centre)
        if 0 <= column < n_columns:
            row[column] = line[i]
    return row


@given(
    n=st.integers(1, 24),
    n_columns=st.integers(1, 24),
    pre=st.integers(0, 8),
    post=st.integers(0, 8),
    centre=st.integers(1, 30),
    reverse=st.booleans(),
)
def test_samples_go_where_a_loop_puts_them(
    n: int, n_columns: int, pre: int, post: int, centre: int, reverse: bool
) -> None:
    line = np.arange(1, n + 1)
    expected = by_hand(line, pre, post, centre, n_columns, reverse)
    if not 0 < n - pre - post <= n_columns or not expected.any():
        with pytest.raises(PeerError):
            place_readout(n, pre, post, centre, n_columns, reverse)
        return
    placed = place_readout(n, pre, post, centre, n_columns, reverse)
    row = np.zeros(n_columns, line.dtype)
    row[placed.to] = line[placed.take]
    assert row.tolist() == expected.tolist()


def test_a_centre_that_was_not_filled_in_is_the_middle() -> None:
    assert place_readout(8, 0, 0, 0, 8, False) == place_readout(8, 0, 0, 4, 8, False)
    assert place_readout(10, 1, 1, 0, 8, False) == place_readout(10, 1, 1, 5, 8, False)


def test_what_does_not_fit_names_its_values() -> None:
    with pytest.raises(PeerError, match="line of 9 samples, 0 and 0 of them to discard, does not fit into 8 encoded"):
        place_readout(9, 0, 0, 4, 8, False)
    with pytest.raises(PeerError, match="centre sample 500 of 8 leaves no sample in 8 columns"):
        place_readout(8, 0, 0, 500, 8, False)


def data_of(ky: list[int]) -> np.ndarray:
    """Line k holds k + 1 everywhere but for the coil in the imaginary part."""
    lines = np.empty((len(ky), 2, 4), np.complex64)
    for n, line in enumerate(ky):
        lines[n] = line + 1 + 1j * np.arange(2)[:, None]
    return lines


def add(lines: Lines, *ky: int) -> None:
    lines.add(np.array(ky), np.zeros(len(ky), bool), data_of(list(ky)), ALL)


@pytest.mark.parametrize("capacity", [1, 3, 4, 9])
def test_lines_come_out_in_order_whatever_the_guess(capacity: int) -> None:
    lines = Lines(2, 9, 4, capacity)
    add(lines, 5, 1)
    add(lines, 7)
    add(lines, 3)
    gathered = lines.gather()
    assert gathered.ky.tolist() == [1, 3, 5, 7]
    assert np.array_equal(gathered.kspace, data_of([1, 3, 5, 7]).transpose(1, 0, 2))
    assert gathered.kspace.flags.c_contiguous


def test_of_repeated_lines_the_first_is_kept() -> None:
    lines = Lines(2, 9, 4, 9)
    add(lines, 2, 4)
    lines.add(np.array([4, 6, 6]), np.zeros(3, bool), data_of([0, 6, 0]), ALL)
    lines.add(np.array([4]), np.zeros(1, bool), data_of([0]), ALL)
    gathered = lines.gather()
    assert np.array_equal(gathered.kspace, data_of([2, 4, 6]).transpose(1, 0, 2))
    assert gathered.repeated == [4, 6]


def test_lines_with_nan_or_inf_are_left_out_and_huge_ones_kept() -> None:
    lines = Lines(2, 9, 4, 4)
    data = data_of([0, 1, 2, 3])
    data[1, 1, 2] = np.nan
    data[2, 0, 0] = complex(0, -np.inf)
    data[3] = 3e38  # its square is not finite in float32
    lines.add(np.arange(4), np.zeros(4, bool), data, ALL)
    gathered = lines.gather()
    assert gathered.ky.tolist() == [0, 3]
    assert gathered.not_finite.tolist() == [1, 2]
    assert np.array_equal(gathered.kspace, data[[0, 3]].transpose(1, 0, 2))


@pytest.mark.parametrize(("value", "all_zero"), [(0, True), (1e-30, False)])  # the square of 1e-30 is 0 in float32
def test_zero_is_told_from_tiny(value: float, all_zero: bool) -> None:
    lines = Lines(2, 9, 4, 4)
    lines.add(np.arange(4), np.zeros(4, bool), np.full((4, 2, 4), value, np.complex64), ALL)
    assert lines.gather().all_zero is all_zero


def test_columns_that_no_sample_reaches_are_zero() -> None:
    lines = Lines(1, 2, 6, 2)
    lines.add(np.arange(2), np.zeros(2, bool), np.ones((2, 1, 4), np.complex64), place_readout(4, 0, 0, 1, 6, False))
    assert lines.gather().kspace[0].real.tolist() == [[0, 0, 1, 1, 1, 1]] * 2
