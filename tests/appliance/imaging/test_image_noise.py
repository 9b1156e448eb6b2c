# SPDX-License-Identifier: Apache-2.0
"""Noise estimation against images whose noise is known."""

import numpy as np
import pytest

from appliance.imaging.noise import estimate_noise


def disc(shape, signal: float, sigma: float, masked: bool = False):
    """A bright disc in air with Rician noise; `masked`: the scanner set the air to zero."""
    rng = np.random.default_rng(8)
    y, x = np.ogrid[: shape[0], : shape[1]]
    inside = np.hypot(y - shape[0] / 2, x - shape[1] / 2) < min(shape) * 0.3
    real, imaginary = rng.normal(0, sigma, (2, *shape))
    image = np.hypot(signal * inside + real, imaginary).astype(np.float32)
    image = np.where(inside | (not masked), image, np.float32(0))
    image.flags.writeable = False
    return image


@pytest.mark.parametrize("shape", [(256, 256), (181, 230)])
@pytest.mark.parametrize("masked", [False, True], ids=["air", "masked"])
@pytest.mark.parametrize("sigma", [1.0, 5.0, 10.0])
def test_the_noise_of_tissue_is_found_beside_air(shape, masked, sigma):
    # 3,000 blocks or more: the standard error of their median is 1.5 %; the Rician spread at 10 sigma is 0.3 % low
    assert estimate_noise(disc(shape, 100.0, sigma, masked)) == pytest.approx(sigma, rel=0.06)


def test_a_noise_free_image_gives_zero():
    ramp = np.add.outer(np.arange(64.0, dtype=np.float32), np.arange(1, 65.0, dtype=np.float32))
    assert estimate_noise(ramp) == pytest.approx(0, abs=1e-6)


def test_it_scales_with_the_image():
    image = disc((64, 64), 100, 5)
    assert estimate_noise(image * np.float32(8)) == 8 * estimate_noise(image)


@pytest.mark.parametrize("image", [np.zeros((32, 32)), np.ones((5, 5)), np.full((1, 40), 3.0)])
def test_too_little_signal_gives_zero(image):
    assert estimate_noise(image.astype(np.float32)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_give_nan(bad):
    image = disc((32, 32), 100, 5).copy()
    image[3, 4] = bad
    assert np.isnan(estimate_noise(image))
