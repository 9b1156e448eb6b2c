# SPDX-License-Identifier: Apache-2.0
"""A shift, motion during a frame and ghosts of odd and even lines are found where and as large as they were planted."""

import math

import numpy as np
import pytest
from scipy.ndimage import rotate

from appliance.mri.baseline import NEWEST_PART, RECENT_NOISE, Baseline, measure
from appliance.mri.consistency import find_displacement, find_motion, find_odd_even_ghost, phase_by_neighbours
from appliance.mri.fourier import to_kspace
from appliance.mri.phantom import NOISE_STD, cine_image, cine_kspace, coil_sensitivities, noise_samples

MATRIX = (128, 96)
CLEAN = 0.06  # clean frames stay below it here


def acquired(acceleration=1, frame_index=0, n_coils=6):
    kspace = cine_kspace(frame_index, MATRIX, n_coils)[:, ::acceleration]
    return np.ascontiguousarray(kspace), np.arange(0, 128, acceleration)


def levels_of(kspace, ky, baseline):
    return measure(kspace.astype(np.complex64), ky, np.ones(len(ky), bool), baseline)


def settled(acceleration, n_frames=6):
    baseline = Baseline()
    for index in range(n_frames):
        baseline.accept(levels_of(*acquired(acceleration, index), baseline))
    return baseline


def ramp(ky, shift_x, shift_y):
    return np.exp(-2j * np.pi * (shift_y * (ky[:, None] - 64) / 128 + shift_x * (np.arange(96) - 48) / 96))


@pytest.mark.parametrize(("shift_x", "shift_y"), [(5, 0), (0, -4), (3.5, 2.5)])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_a_shift_is_measured_in_pixels_and_is_no_motion(shift_x, shift_y, acceleration):
    baseline = settled(acceleration)
    kspace, ky = acquired(acceleration, 6)
    comparison = levels_of(kspace * ramp(ky, shift_x, shift_y), ky, baseline).comparison
    measured, (found,) = find_displacement(comparison, ky, 96, 1.0)
    assert measured == pytest.approx(math.hypot(shift_x, shift_y), abs=0.3)
    assert found.where["shift_x"] == pytest.approx(shift_x, abs=0.3)
    assert found.where["shift_y"] == pytest.approx(shift_y, abs=0.3)
    assert find_motion(comparison, ky, CLEAN)[1] == []
    assert find_odd_even_ghost(comparison.odd_even, 0.02)[1] == []


@pytest.mark.parametrize("phase", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("acceleration", [1, 2, 3])
def test_the_ghost_of_odd_and_even_lines_is_as_large_as_its_phase_makes_it(phase, acceleration):
    baseline = settled(acceleration)
    kspace, ky = acquired(acceleration, 6)
    kspace[:, 1::2] *= np.complex64(np.exp(1j * phase))
    comparison = levels_of(kspace, ky, baseline).comparison
    measured, (found,) = find_odd_even_ghost(comparison.odd_even, 0.05)
    assert measured == pytest.approx(math.tan(phase / 2), rel=0.1)
    assert found.kind == "odd_even"
    assert f"a ghost of {100 * measured:.0f} % half a field of view away" in found.message
    assert find_motion(comparison, ky, CLEAN)[1] == [], "no motion: the rest is as usual"


@pytest.mark.parametrize("phase", [-0.9, 0, 0.4, 1.0])
@pytest.mark.parametrize("acceleration", [1, 2])
def test_a_ghost_is_seen_in_a_frame_by_itself(phase, acceleration):
    kspace, _ = acquired(acceleration, n_coils=8)
    kspace[:, 1::2] *= np.complex64(np.exp(1j * phase))
    assert abs(phase_by_neighbours(kspace)) == pytest.approx(abs(phase), abs=0.03)


def test_one_coil_or_few_lines_tell_no_ghost_by_themselves():
    kspace, _ = acquired()
    assert phase_by_neighbours(kspace[:1]) is None
    assert phase_by_neighbours(kspace[:, 60:70]) is None


@pytest.mark.parametrize("acceleration", [1, 2, 3])
@pytest.mark.parametrize("jump", [-12, 6, 12])
def test_a_jump_during_the_frame_is_motion_on_the_right_side_of_it(jump, acceleration):
    baseline = settled(acceleration)
    kspace, ky = acquired(acceleration, 6)
    after = ky >= 64 + jump
    kspace = np.where(after[:, None], kspace * ramp(ky, 2, 5), kspace)
    comparison = levels_of(kspace, ky, baseline).comparison
    measured, (found,) = find_motion(comparison, ky, CLEAN)
    assert measured > 0.1
    if jump > 0:  # most of the signal came before it
        assert found.where["last_line"] >= 64 + jump
    else:
        assert found.where["line"] < 64 + jump


def test_the_part_that_differs_is_that_of_the_signal():
    """Oracle: lines of equal power with nothing in common differ by all of their signal, opposite ones by twice."""
    baseline = settled(1)
    kspace, ky = acquired(1, 6)
    strange = noise_samples(kspace[:, 70:100].shape, 1.0, seed=4)
    strange *= np.linalg.norm(kspace[:, 70:100], axis=(0, 2))[:, None] / np.linalg.norm(strange, axis=(0, 2))[:, None]
    for planted, part in ((strange, 1), (-kspace[:, 70:100], 2)):
        run = kspace.copy()
        run[:, 70:100] = planted
        assert levels_of(run, ky, baseline).comparison.differs[70] == pytest.approx(part, abs=0.1)


def test_a_turn_of_some_degrees_during_the_frame_is_motion():
    baseline = settled(1)
    kspace, ky = acquired(1, 6)
    turned = rotate(cine_image(6, MATRIX), 5, reshape=False, order=1) * coil_sensitivities(MATRIX, 6)
    late = to_kspace(turned.astype(np.complex64))[:, 70:]
    kspace[:, 70:] = late + noise_samples(late.shape, seed=3)
    assert find_motion(levels_of(kspace, ky, baseline).comparison, ky, CLEAN)[1]


def test_a_loss_of_signal_and_a_brighter_region_are_no_motion():
    baseline = settled(1)
    kspace, ky = acquired(1, 6)
    assert find_motion(levels_of(0.5 * kspace, ky, baseline).comparison, ky, CLEAN)[1] == []
    y, x = np.ogrid[-1:1:128j, -1:1:96j]
    agent = 0.3 * (np.hypot(x - 0.12, y + 0.12) < 0.15) * coil_sensitivities(MATRIX, 6)  # blood, a third brighter
    bolus = kspace + to_kspace(agent.astype(np.complex64))
    assert find_motion(levels_of(bolus, ky, baseline).comparison, ky, CLEAN)[1] == []


def test_noise_alone_neither_counts_as_motion_nor_hides_it():
    baseline = settled(1)
    _, ky = acquired(1, 6)
    loud = cine_kspace(6, MATRIX, 6, noise_std=3 * NOISE_STD)
    assert find_motion(levels_of(loud, ky, baseline).comparison, ky, 0.1)[1] == []
    late = np.where((ky >= 68)[:, None], loud * ramp(ky, 0, 6), loud)
    assert find_motion(levels_of(late, ky, baseline).comparison, ky, 0.1)[1]


def test_there_is_no_comparison_before_the_fourth_frame_or_without_known_noise():
    assert settled(1, 2).usual is None
    kspace, ky = acquired(1, 6)
    assert levels_of(kspace, ky, settled(1, 2)).comparison is None
    assert levels_of(kspace, ky, settled(1, 3)).comparison is not None
    few = kspace[:, 60:67]  # too few lines
    assert levels_of(few, ky[60:67], Baseline()).comparison is None


def test_the_noise_of_the_frames_to_compare_with_is_what_their_mean_makes_of_it():
    rng, mean = np.random.default_rng(0), 0.0
    for _ in range(50):
        mean = (1 - NEWEST_PART) * mean + NEWEST_PART * rng.standard_normal(20_000)
    assert np.var(mean) == pytest.approx(RECENT_NOISE, rel=0.05)
