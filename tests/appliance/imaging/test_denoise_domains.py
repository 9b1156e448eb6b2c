# SPDX-License-Identifier: Apache-2.0
"""Scale and range of each kind of image that is denoised."""

import numpy as np
import pytest

from appliance.imaging.denoise_domains import DOMAINS


@pytest.mark.parametrize("name", DOMAINS)
def test_no_pixel_is_driven_out_of_its_range_nor_moved_by_more_than_told(name):
    domain, rng = DOMAINS[name], np.random.default_rng(0)
    image = rng.uniform(-50, 300, (40, 30)).astype(np.float32)
    result = image - domain.limited(image, rng.normal(0, 200, image.shape).astype(np.float32), np.float32(90))
    assert result.dtype == np.float32
    assert np.abs(result - image).max() <= 90.001
    lowest = -np.inf if domain.lowest is None else domain.lowest
    highest = np.inf if domain.highest is None else domain.highest
    assert (result >= np.minimum(image, lowest) - 1e-4).all()  # what was out of range stays where it was
    assert (result <= np.maximum(image, highest) + 1e-4).all()
    assert ((image < lowest) <= (result >= image)).all()


def test_a_fixed_scale_keeps_units_and_a_magnitude_takes_that_of_its_first_frame():
    image = np.full((8, 8), 40, np.float32)
    assert DOMAINS["ct-hu"].first_scale(image) == 1000
    assert DOMAINS["us-log"].first_scale(image) == 255
    assert DOMAINS["mr-magnitude"].first_scale(image) == 40
    assert DOMAINS["mr-magnitude"].first_scale(0 * image) == 0


def test_ct_noise_in_air_is_taken_out_on_both_sides():
    air = np.random.default_rng(1).normal(-1000, 20, (32, 32)).astype(np.float32)
    noise = air + 1000
    assert np.allclose(air - DOMAINS["ct-hu"].limited(air, noise, np.float32(100)), -1000, atol=1e-3)
