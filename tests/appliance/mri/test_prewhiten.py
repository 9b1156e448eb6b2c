# SPDX-License-Identifier: Apache-2.0
"""Whitening: the covariance becomes the identity."""

import numpy as np
import pytest

from appliance.frames import read_only
from appliance.mri.phantom import cine_kspace
from appliance.mri.prewhiten import noise_covariance, noise_from_periphery, prewhiten, prewhitening_matrix


def correlated_noise(n_coils: int = 5, n_samples: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (n_coils, n_samples)
    white = (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)) / np.sqrt(2)
    shape = (n_coils, n_coils)
    mix = np.eye(n_coils) + 0.3 * (generator.standard_normal(shape) + 1j * generator.standard_normal(shape))
    return read_only((mix @ white).astype(np.complex64)), mix @ mix.conj().T


def test_covariance_is_that_of_the_noise() -> None:
    noise, truth = correlated_noise()
    np.testing.assert_allclose(noise_covariance(noise), truth, atol=0.02 * np.abs(truth).max())  # 1 / √200 000 = 0.2 %
    np.testing.assert_allclose(noise_covariance(noise.reshape(5, 100, -1)), noise_covariance(noise))


def test_whitened_covariance_is_the_identity() -> None:
    noise, _ = correlated_noise()
    white = prewhiten(noise, prewhitening_matrix(noise_covariance(noise)))
    assert white.dtype == np.complex64 and white.shape == noise.shape
    np.testing.assert_allclose(noise_covariance(white), np.eye(5), atol=1e-4)


def test_too_little_noise_and_dead_coils_are_told() -> None:
    noise, _ = correlated_noise()
    with pytest.raises(ValueError, match="39 samples are too few for 5 coils; measure more noise"):
        noise_covariance(noise[:, :39])
    broken = noise.copy()
    broken[3] = 0
    broken[1, 7] = np.nan
    with pytest.raises(ValueError, match=r"no usable noise in coils \[1, 3\]; check these receive channels"):
        noise_covariance(broken)


def test_periphery_gives_the_noise_level_of_a_frame() -> None:
    kspace = cine_kspace(0)[:, ::2]
    power = np.diag(noise_from_periphery(kspace)).real
    np.testing.assert_allclose(power, 2 * 0.02**2, rtol=0.25)  # a few hundred samples and a little signal
