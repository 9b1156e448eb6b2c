# SPDX-License-Identifier: Apache-2.0
"""Faults that are planted into CT slices and ultrasound frames are what they say, and change nothing else."""

import numpy as np
import pytest

from training import ct_faults, us_faults
from training.parallel_beam import beam_for, project

SIZE, PIXEL_MM = 128, 1.5


@pytest.fixture(scope="module")
def cylinder():
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    return np.where(np.hypot(y / 48, x / 40) < 1, 40, -1000).astype(np.float32)


@pytest.fixture(scope="module")
def beam():
    return beam_for(SIZE, 360)


@pytest.mark.parametrize("noise_hu", [5.0, 20.0])
def test_a_scan_has_the_noise_that_was_asked_for_and_values_as_stored(cylinder, beam, noise_hu):
    first, second = (
        ct_faults.scan(np.random.default_rng(seed), cylinder, beam, PIXEL_MM, noise_hu).image for seed in (1, 2)
    )
    difference = (first - second)[cylinder > 0] / 2**0.5
    # the median over the body was asked for, and the noise of a cylinder falls towards its rim
    assert float(np.std(difference)) == pytest.approx(noise_hu, rel=0.2)
    assert np.array_equal(first, np.rint(first))
    assert first.min() >= -1024


def test_more_scans_of_a_slice_have_the_same_noise(cylinder, beam):
    scanned = ct_faults.scan(np.random.default_rng(1), cylinder, beam, PIXEL_MM, 10.0)
    noise = ct_faults.noise_images(np.random.default_rng(2), scanned, 3)
    body = cylinder > 0
    known = np.std((scanned.image - cylinder)[body])
    assert noise.shape == (3, SIZE, SIZE)
    assert [np.std(one[body]) for one in noise] == pytest.approx([known] * 3, rel=0.1)
    assert abs(np.corrcoef(noise[0][body], noise[1][body])[0, 1]) < 0.05


def test_a_ring_is_a_ring(cylinder, beam):
    planted = ct_faults.plant(
        np.random.default_rng(4), "rings", ct_faults.scan(np.random.default_rng(1), cylinder, beam, PIXEL_MM, 5.0)
    )
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    radius = np.hypot(y, x)
    on = np.abs(radius - abs(planted.where)) < 0.5
    assert np.abs(planted.added[on]).mean() > 5 * np.abs(planted.added[np.abs(radius - abs(planted.where)) > 6]).mean()
    assert np.abs(np.sign(planted.added[on]).mean()) > 0.95, "all of the turn has one sign"


@pytest.mark.parametrize("kind", ["missing_views", "tube_arcing", "streaks"])
def test_a_fault_of_views_is_in_the_projections_at_its_angle(cylinder, beam, kind):
    scanned = ct_faults.scan(np.random.default_rng(1), cylinder, beam, PIXEL_MM, 5.0)
    planted = ct_faults.plant(np.random.default_rng(5), kind, scanned)
    strength = np.std(np.diff(project(planted.added, beam), axis=1), axis=1)
    if kind == "streaks":  # over many degrees
        strength = np.convolve(np.tile(strength, 3), np.ones(31) / 31, "same")[beam.n_views : 2 * beam.n_views]
    found = np.degrees(beam.angles[int(strength.argmax())])
    # arms cover 20 to 40 degrees, views are lost over up to 6
    assert abs((found - planted.where + 90) % 180 - 90) <= {"streaks": 12, "missing_views": 4}.get(kind, 1)


@pytest.fixture(scope="module")
def frame():
    return us_faults.clip(np.random.default_rng(6), 160, 1)[0]


@pytest.mark.parametrize("seed", range(4))
def test_ultrasound_faults_are_what_they_say(frame, seed):
    before, rng = frame.copy(), np.random.default_rng(seed)
    white = us_faults.plant(rng, "gain_saturation", frame)
    assert 0.2 <= np.mean(white.image[frame > 0] == 255) <= 0.62  # grey levels are whole numbers
    assert np.array_equal(white.image[frame == 0], frame[frame == 0])
    line = us_faults.plant(rng, "dropped_lines", frame)
    changed = np.flatnonzero((line.image != frame).any(axis=0))
    assert (changed[0], line.image[:, changed].max() <= 4) == (line.column, True)
    assert len(changed) <= 0.018 * 160 + 1
    lifted = us_faults.plant(rng, "probe_decoupling", frame)
    changed = np.flatnonzero((lifted.image != frame).any(axis=0))
    assert changed[0] >= lifted.column
    assert len(changed) >= 0.39 * 160
    assert lifted.image[40:][:, changed].max() <= 0.15 * 255
    assert np.array_equal(frame, before)
