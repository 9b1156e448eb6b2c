# SPDX-License-Identifier: Apache-2.0
"""The noise of CT images, estimated against noise that was simulated in the projections."""

import numpy as np
import pytest

from appliance.ct.noise import estimate_ct_noise
from training.low_dose_ct import scan_low_dose
from training.parallel_beam import beam_for


def head(size=160):
    """Skull, brain with a little contrast, air."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    r = np.hypot(y / 0.42, x / 0.36) / size
    brain = 30 + 6 * np.sin(x / 9) * np.sin(y / 7)
    return np.where(r < 0.9, brain, np.where(r < 1, 900, -1000)).astype(np.float32)


@pytest.mark.parametrize("bin_px", [0.8, 1.6], ids=["sharp", "smooth"])
@pytest.mark.parametrize("level_hu", [5.0, 25.0])
def test_correlated_noise_is_found(level_hu, bin_px):
    truth = head()
    (scan,) = scan_low_dose(np.random.default_rng(3), truth, beam_for(160, 240, bin_px), 1.2, level_hu)
    soft = np.abs(truth) < 100
    known = float(np.median(scan.level[soft]))
    # some 300 blocks of a few grains each, and noise that differs by 1.3 times over the brain
    assert estimate_ct_noise(truth + scan.noise) == pytest.approx(known, rel=0.25)


def test_padding_is_not_measured_and_a_phantom_without_tissue_is():
    rng = np.random.default_rng(0)
    image = np.full((128, 128), -1500, np.float32)
    assert estimate_ct_noise(image) == 0
    image[:, 40:] = rng.normal(-1000, 7, (128, 88))
    assert estimate_ct_noise(image) == pytest.approx(7, rel=0.1)


def test_odd_cases():
    assert estimate_ct_noise(np.zeros((128, 128), np.float32)) == 0
    assert estimate_ct_noise(np.zeros((5, 3), np.float32)) == 0
    image = np.zeros((64, 64), np.float32)
    image[3, 4] = np.nan
    assert np.isnan(estimate_ct_noise(image))
