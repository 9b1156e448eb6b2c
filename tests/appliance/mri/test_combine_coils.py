# SPDX-License-Identifier: Apache-2.0
"""Adaptive combination: phase kept, and the best signal-to-noise ratio that the coils allow."""

import numpy as np
import pytest

from appliance.frames import read_only
from appliance.mri.combine_coils import combine_coils, estimate_sensitivities, root_sum_of_squares
from appliance.mri.fourier import to_image
from appliance.mri.phantom import cine_image, cine_kspace, coil_sensitivities


@pytest.mark.parametrize("matrix", [(128, 128), (129, 96), (96, 127)])
def test_estimated_maps_give_the_true_magnitude_and_have_norm_one(matrix: tuple[int, int]) -> None:
    kspace = read_only(cine_kspace(0, matrix, noise_std=0))
    centre = matrix[0] // 2
    maps = estimate_sensitivities(kspace[:, centre - 12 : centre + 12], matrix)
    assert maps.dtype == np.complex64 and maps.shape == kspace.shape
    np.testing.assert_allclose(root_sum_of_squares(maps), 1, atol=1e-5)
    truth = cine_image(0, matrix)
    combined = np.abs(combine_coils(to_image(kspace), maps))
    inside = truth > 0.05
    np.testing.assert_allclose(combined[inside], truth[inside], atol=0.02)  # maps from 24 lines are a little too smooth


def test_maps_point_along_the_true_sensitivities() -> None:
    matrix = (128, 128)
    maps = estimate_sensitivities(cine_kspace(0, matrix)[:, 52:76], matrix)
    agreement = np.abs((maps.conj() * coil_sensitivities(matrix)).sum(0))
    assert agreement[cine_image(0, matrix) > 0.3].min() > 0.99


def test_phase_is_the_objects_up_to_the_smooth_one_of_a_virtual_coil() -> None:
    """A second object with another phase, seen by the same coils, keeps the difference."""
    matrix = (96, 96)
    images = to_image(cine_kspace(0, matrix, noise_std=0))
    maps = estimate_sensitivities(cine_kspace(0, matrix, noise_std=0)[:, 36:60], matrix)
    extra = np.exp(1j * np.linspace(-3, 3, 96, dtype=np.float32))[:, None]  # e.g. flow or temperature
    one, other = combine_coils(images, maps), combine_coils(images * extra, maps)
    inside = cine_image(0, matrix) > 0.3
    difference = np.angle(other * one.conj() * extra.conj())
    assert np.abs(difference[inside]).max() < 1e-4
    steps = np.abs(np.angle(one[:, 1:] * one[:, :-1].conj()))[inside[:, 1:] & inside[:, :-1]]
    assert np.quantile(steps, 0.99) < 0.3  # no jumps of its own


def test_signal_to_noise_is_the_optimum() -> None:
    """In the dark and in the bright: that of the true maps (Roemer), and better than root sum of squares' bias."""
    matrix = (96, 96)
    truth = cine_image(0, matrix)
    maps = estimate_sensitivities(cine_kspace(0, matrix)[:, 36:60], matrix)
    combined = np.stack([combine_coils(to_image(cine_kspace(0, matrix, seed=s)), maps) for s in range(12)])
    inside = truth > 0.3
    np.testing.assert_allclose(np.abs(combined.mean(0))[inside], truth[inside], atol=0.05)
    noise = np.sqrt(combined.real.var(0, ddof=1)[inside].mean())  # with |S| = 1 the optimum is the coils' own noise
    assert noise == pytest.approx(0.02, rel=0.03)
    outside = root_sum_of_squares(to_image(cine_kspace(0, matrix)))[:10].mean()
    assert np.abs(combined[0])[:10].mean() < 0.6 * outside
