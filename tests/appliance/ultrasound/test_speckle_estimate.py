# SPDX-License-Identifier: Apache-2.0
"""The strength of speckle, estimated against displays whose range is known."""

import numpy as np
import pytest

from appliance.ultrasound.speckle import estimate_speckle
from training.speckle import LOG_RAYLEIGH_DB, Probe, Tissue, show


@pytest.mark.parametrize("range_db", [45.0, 75.0])
def test_it_is_that_of_fully_developed_speckle(range_db):
    diffuse = np.ones((192, 192), np.float32)
    diffuse[40:90, 60:110] = 0.3  # a cyst
    probe = Probe(1.0, (1.5, 2.0), range_db, 0.6 * range_db, 5.0, -30.0)
    image = 255 * show(np.random.default_rng(0), Tissue(diffuse, 0 * diffuse), probe)[0]
    # a block of 12 × 12 holds few grains, and takes part of their spread for its mean
    assert estimate_speckle(image) == pytest.approx(255 * LOG_RAYLEIGH_DB / range_db, rel=0.2)


def test_odd_cases():
    assert estimate_speckle(np.zeros((64, 64), np.float32)) == 0
    assert estimate_speckle(np.full((8, 8), 100, np.float32)) == 0
    assert np.isnan(estimate_speckle(np.full((64, 64), np.nan, np.float32)))
