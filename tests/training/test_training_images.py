# SPDX-License-Identifier: Apache-2.0
"""What the shipped denoiser was trained and measured with, against closed forms. No torch here."""

import numpy as np
import pytest

from training.dead_leaves import dead_leaves
from training.phantoms import random_phantom
from training.validate_denoise import body_psnr_db, rician


def test_dead_leaves_repeat_and_have_edges_like_anatomy():
    images = [dead_leaves(np.random.default_rng([5, i]), 96) for i in range(6)]
    assert np.array_equal(images[0], dead_leaves(np.random.default_rng([5, 0]), 96))
    assert not np.array_equal(images[0], images[1])
    for image in images:
        assert image.shape == (96, 96) and image.dtype == np.float32
        assert image.min() >= 0 and 0.9 < image.max() < 3
    steps = np.diff(np.stack(images), axis=2)
    # mostly flat with few strong edges: the fourth moment is far above that of a normal distribution, 3
    assert np.mean(steps**4) / np.mean(steps**2) ** 2 > 9


def test_random_phantoms_repeat_and_are_even():
    images = [random_phantom(np.random.default_rng([5, i]), 256) for i in range(6)]
    assert np.array_equal(images[0], random_phantom(np.random.default_rng([5, 0]), 256))
    for image in images:
        assert image.shape == (256, 256) and image.dtype == np.float32 and image.min() >= 0
        even = np.abs(np.diff(image, axis=1)) < 1e-6
        assert even.mean() > 0.7  # equal neighbours; dead leaves have them in air only


def test_rician_noise_has_the_moments_of_its_distribution():
    rng = np.random.default_rng(0)
    air = rician(rng, np.zeros((400, 400), np.float32), 2.0)
    assert air.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh
    tissue = rician(rng, np.full((400, 400), 50, np.float32), 2.0)
    assert np.mean(tissue.astype(float) ** 2) == pytest.approx(50**2 + 2 * 2.0**2, rel=0.002)


def test_psnr_counts_the_body_only():
    truth = np.zeros((10, 10), np.float32)
    truth[2:8, 2:8] = 200
    image = truth + np.float32(2)
    assert body_psnr_db(image, truth) == pytest.approx(40)  # 20 log10(200 / 2)
    image[0, 0] = 1e6
    assert body_psnr_db(image, truth) == pytest.approx(40)
