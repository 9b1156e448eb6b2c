# SPDX-License-Identifier: Apache-2.0
"""Line drop, zipper, shift, motion and odd-even ghosts are found where and as large as they were planted."""

import math

import numpy as np
import pytest

from appliance.mri.baseline import Baseline, measure
from appliance.mri.consistency import find_inconsistency, find_odd_even_ghost
from appliance.mri.line_quality import find_displacement, find_line_drop, find_zipper
from appliance.mri.phantom import NOISE_STD, cine_kspace

MATRIX = (128, 96)


def acquired(acceleration=1, frame_index=0):
    return np.ascontiguousarray(cine_kspace(frame_index, MATRIX, 6)[:, ::acceleration]), np.arange(0, 128, acceleration)


def levels_of(kspace, ky, baseline=None):
    return measure(kspace, ky, np.ones(len(ky), bool), baseline or Baseline())


def settled(acceleration):
    baseline = Baseline()
    for index in range(6):
        baseline.accept(levels_of(*acquired(acceleration, index), baseline))
    return baseline


@pytest.mark.parametrize("acceleration", [1, 2, 3])
@pytest.mark.parametrize("left", [0.0, 0.1])
def test_a_line_without_signal_is_named(acceleration, left):
    kspace, ky = acquired(acceleration)
    hit = len(ky) // 2 + 3
    kspace[:, hit] *= left
    measured, (found,) = find_line_drop(levels_of(kspace, ky), ky, 3.0)
    assert dict(found.where) == {"line": int(ky[hit])}
    assert measured == 1000 if left == 0 else 3 < measured < 30
    assert found.message.startswith(f"line {ky[hit]} has " + ("no data" if left == 0 else "1/"))


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


@pytest.mark.parametrize(("shift_x", "shift_y"), [(5, 0), (0, -4), (3.5, 2.5)])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_a_shift_is_measured_in_pixels(shift_x, shift_y, acceleration):
    baseline = settled(acceleration)
    kspace, ky = acquired(acceleration, 3)
    turn = np.exp(-2j * np.pi * (shift_y * (ky[:, None] - 64) / 128 + shift_x * (np.arange(96) - 48) / 96))
    levels = levels_of((kspace * turn).astype(np.complex64), ky, baseline)
    measured, (found,) = find_displacement(levels, ky, 96, baseline, 1.0)
    assert measured == pytest.approx(math.hypot(shift_x, shift_y), abs=0.6)
    assert found.where["shift_x"] == pytest.approx(shift_x, abs=0.6)
    assert found.where["shift_y"] == pytest.approx(shift_y, abs=0.6)


@pytest.mark.parametrize("phase", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_the_ghost_of_odd_and_even_lines_is_as_large_as_its_phase_makes_it(phase, acceleration):
    baseline = settled(acceleration)
    kspace, ky = acquired(acceleration, 8)
    kspace[:, 1::2] *= np.complex64(np.exp(1j * phase))
    levels = levels_of(kspace, ky, baseline)
    measured, (found,) = find_odd_even_ghost(levels.fit, np.angle(baseline.turn), 0.05)
    assert measured == pytest.approx(math.tan(phase / 2), rel=0.1)
    assert found.kind == "odd_even"


@pytest.mark.parametrize("jump", [4, 6, 10])
def test_a_jump_between_two_lines_is_placed(jump):
    baseline = settled(1)
    kspace, ky = acquired(1, 8)
    first = 64 + jump
    after = np.arange(128) >= first
    kspace = (kspace * np.exp(-2j * np.pi * 6 * (ky - 64) / 128 * after)[:, None]).astype(np.complex64)
    levels = levels_of(kspace, ky, baseline)
    measured, (found,) = find_inconsistency(levels.fit, baseline.residual, ky[baseline.block[1]][1:-1], 2.0)
    assert found.where["line"] in range(first - 2, first + 2)
    assert measured > 2
