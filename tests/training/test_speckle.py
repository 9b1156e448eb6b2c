# SPDX-License-Identifier: Apache-2.0
"""Simulated speckle against the closed forms of Rayleigh and Rician envelopes."""

import numpy as np
import pytest

from training.speckle import LOG_RAYLEIGH_DB, Probe, Tissue, draw_probe, draw_tissue, show

WIDE = Probe(1.2, (2.0, 4.0), range_db=1000.0, gain_db=500.0, attenuation_db=10.0, floor_db=-300.0)  # nothing clips


def tissue(coherent_rows=0.0):
    diffuse = np.ones((128, 128), np.float32)
    coherent = np.zeros_like(diffuse)
    coherent[60:63] = coherent_rows
    return Tissue(diffuse, coherent)


def frames(given, n):
    shown = [show(np.random.default_rng(i), given, WIDE) for i in range(n)]
    return 1000 * np.stack([image for image, _ in shown]), 1000 * shown[0][1]


def test_fully_developed_speckle_is_log_rayleigh():
    shown, truth = frames(tissue(), 12)
    error = (shown - truth)[:, 12:-12, 12:-12]  # away from the borders, where scatterers are missing
    assert error.mean() == pytest.approx(0, abs=0.15)
    assert error.std() == pytest.approx(LOG_RAYLEIGH_DB, rel=0.03)
    assert pytest.approx(5.57, abs=0.005) == LOG_RAYLEIGH_DB  # Burckhardt 1978
    assert np.mean(error**3) < 0  # dark holes, not bright spots


def test_the_truth_is_the_mean_of_many_looks_also_on_a_bright_surface():
    shown, truth = frames(tissue(coherent_rows=3.0), 60)
    error = (shown.mean(axis=0) - truth)[12:-12, 12:-12].mean(axis=1)  # (depth,)
    assert np.abs(error).max() < 1.0  # dB; 60 looks of some 25 grains each
    assert truth[61, 64] > truth[40, 64] + 10


def test_grains_widen_with_depth_and_the_level_falls_as_told():
    shown, truth = frames(tissue(), 8)
    error = shown - truth

    def lateral(rows):
        part = error[:, rows] - error[:, rows].mean()
        return np.mean(part[..., 3:] * part[..., :-3]) / np.mean(part**2)

    assert lateral(slice(100, 120)) > lateral(slice(8, 28)) + 0.15
    assert truth[20, 64] - truth[100, 64] == pytest.approx(10 * 80 / 127, abs=0.1)


def test_displays_are_grey_levels_and_repeat():
    for i in range(4):
        rng, again = np.random.default_rng([4, i]), np.random.default_rng([4, i])
        probe = draw_probe(rng)
        shown, truth = show(rng, draw_tissue(rng, 64), probe)
        for image in (shown, truth):
            assert image.shape == (64, 64) and image.dtype == np.float32
            assert image.min() >= 0 and image.max() <= 1
        probe = draw_probe(again)
        assert np.array_equal(shown, show(again, draw_tissue(again, 64), probe)[0])
