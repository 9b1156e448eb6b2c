# SPDX-License-Identifier: Apache-2.0
"""Line drop and zipper are found where they were planted."""

import numpy as np
import pytest

from appliance.mri.baseline import Baseline, measure
from appliance.mri.line_quality import find_line_drop, find_zipper
from appliance.mri.phantom import NOISE_STD, cine_kspace

MATRIX = (128, 96)


def acquired(acceleration=1, frame_index=0):
    return np.ascontiguousarray(cine_kspace(frame_index, MATRIX, 6)[:, ::acceleration]), np.arange(0, 128, acceleration)


def levels_of(kspace, ky, baseline=None):
    return measure(kspace, ky, np.ones(len(ky), bool), baseline or Baseline())


@pytest.mark.parametrize("acceleration", [1, 2, 3])
@pytest.mark.parametrize("left", [0.0, 0.1])
def test_a_line_without_signal_is_named(acceleration, left):
    kspace, ky = acquired(acceleration)
    hit = len(ky) // 2 + 3
    kspace[:, hit] *= left
    measured, (found,) = find_line_drop(levels_of(kspace, ky), ky, Baseline(), 3.0)
    assert dict(found.where) == {"line": int(ky[hit])}
    assert measured == 1000 if left == 0 else 3 < measured < 30
    assert found.message.startswith(f"line {ky[hit]} has " + ("no data" if left == 0 else "1/"))


def test_a_line_that_always_has_little_signal_is_not_dropped():
    baseline = Baseline()
    for index in range(6):
        kspace, ky = acquired(1, index)
        kspace[:, 70] *= 0.2
        levels = levels_of(kspace, ky, baseline)
        measured, found = find_line_drop(levels, ky, baseline, 1.5)
        assert bool(found) == (index < 3), "usual from the fourth frame on"
        baseline.accept(levels)
    kspace[:, 74] *= 0.6  # half as much as that line lacks, but it did not before
    measured, (found,) = find_line_drop(levels_of(kspace, ky, baseline), ky, baseline, 1.2)
    assert found.where["line"] == 74
    assert measured < 1.9


@pytest.mark.parametrize("column", [3, 20, 48, 90])
def test_a_frequency_is_placed_in_its_image_column(column):
    kspace, ky = acquired(2)
    wave = np.exp(-2j * np.pi * (column - 48) * (np.arange(96) - 48) / 96)
    phase = np.exp(2j * np.pi * np.random.default_rng(0).random(64))
    noisy = (kspace + 2 * NOISE_STD * phase[:, None] * wave).astype(np.complex64)
    imaging = np.ones(64, bool)
    image_row = np.abs(np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(noisy[0, 2] - kspace[0, 2]))))
    assert image_row.argmax() == column, "the oracle: the appliance's own convention of image columns"
    _, (found,) = find_zipper(noisy, ky, imaging, levels_of(noisy, ky), 3.0)
    assert dict(found.where) == {"column": column}
