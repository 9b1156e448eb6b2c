# SPDX-License-Identifier: Apache-2.0
"""Simulated low dose against what counting photons and the length of their way say."""

import numpy as np
import pytest

from training.low_dose_ct import WATER_PER_MM, hu_phantom, scan_low_dose, to_attenuation, to_hu
from training.parallel_beam import beam_for

PIXEL_MM = 1.5


def cylinder(size=96, radius=40, hu=0.0):
    """Water (or something else) in air."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.where(np.hypot(y, x) < radius, np.float32(hu), np.float32(-1000))


def test_hounsfield_units_are_those_of_the_standard():
    assert to_hu(np.array([0.0, WATER_PER_MM * 2, WATER_PER_MM * 4]), 2.0).tolist() == [-1000, 0, 1000]
    assert to_attenuation(np.array([-1500.0, -1000.0, 0.0]), 2.0).tolist() == [0, 0, np.float32(WATER_PER_MM * 2)]


def test_the_noise_of_a_cylinder_has_the_predicted_level_and_no_mean():
    beam = beam_for(96, 180)
    scans = scan_low_dose(np.random.default_rng(0), cylinder(), beam, PIXEL_MM, 20.0, n_scans=12)
    noise, level = np.stack([scan.noise for scan in scans]), scans[0].level
    y, x = np.mgrid[:96, :96] - 47.5
    inner, outer = np.hypot(y, x) < 15, (np.hypot(y, x) > 32) & (np.hypot(y, x) < 38)
    assert np.median(level[cylinder() > -500]) == pytest.approx(20, rel=0.05)  # the electronics add a little
    for where in (inner, outer):  # some thousand correlated values
        assert noise[:, where].std() == pytest.approx(np.sqrt(np.mean(level[where] ** 2)), rel=0.06)
    assert level[inner].mean() > 1.1 * level[outer].mean()  # rays through the middle have a longer way
    assert abs(noise[:, inner].mean()) < 1.0


def expected_periodogram(window, beam_cycles=0.5):
    """Of filtered back-projection's noise seen through `window`, no unit (Kak, Slaney 1988, section 5.2).

    Its spectrum is the filter squared over the ramp that back-projection takes: ramp times Hann squared, times linear
    interpolation's sinc to the fourth. Multiplying by a window multiplies the covariance by the window's own.
    """
    n = 4 * len(window)
    f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.fftfreq(n))
    hann = np.where(f < beam_cycles, np.cos(np.pi * f / (2 * beam_cycles)) ** 2, 0)
    covariance = np.fft.ifft2(f * hann**2 * np.sinc(f) ** 4)
    overlap = np.fft.ifft2(np.abs(np.fft.fft2(window, (n, n))) ** 2)
    return np.fft.fft2(covariance * overlap).real[::4, ::4]


def test_the_noise_is_correlated_as_a_ramp_filter_makes_it():
    scans = scan_low_dose(np.random.default_rng(1), cylinder(), beam_for(96, 180), PIXEL_MM, 20.0, n_scans=100)
    window = np.hanning(64)[:, None] * np.hanning(64)
    power = sum(np.abs(np.fft.fft2(scan.noise[16:80, 16:80] * window)) ** 2 for scan in scans)
    frequency = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))

    def middle_to_low(spectrum):  # 1 for white noise
        low, middle = (spectrum[(frequency > a) & (frequency < b)].mean() for a, b in ((0.02, 0.05), (0.15, 0.25)))
        return middle / low

    expected = middle_to_low(expected_periodogram(window))
    # 100 scans of some 4 independent low frequencies: 6 % from seed to seed; white noise's 1 is 39 % off
    assert middle_to_low(power) == pytest.approx(expected, rel=0.2)


def test_the_level_that_is_asked_for_sets_the_dose():
    (thin,) = scan_low_dose(np.random.default_rng(2), cylinder(radius=20), beam_for(96, 90), PIXEL_MM, 10.0)
    (again,) = scan_low_dose(np.random.default_rng(2), cylinder(radius=20), beam_for(96, 90), PIXEL_MM, 14.14)
    assert again.noise.std() / thin.noise.std() == pytest.approx(2**0.5, rel=0.05)


def test_bodies_repeat_and_hold_every_tissue():
    bodies = [hu_phantom(np.random.default_rng([6, i]), 64) for i in range(8)]
    assert np.array_equal(bodies[0], hu_phantom(np.random.default_rng([6, 0]), 64))
    all_hu = np.stack(bodies)
    assert all_hu.min() >= -1000.5 and all_hu.max() < 3100 and all_hu.dtype == np.float32
    for low, high in ((-1001, -700), (-150, -50), (0, 100), (250, 3100)):
        assert np.mean((all_hu >= low) & (all_hu <= high)) > 0.01
