# SPDX-License-Identifier: Apache-2.0
"""The phantom is what it says: moving, repeatable, with the stated noise and level."""

import numpy as np
import pytest

from appliance.mri.phantom import BEAT_FRAMES, NOISE_STD, cine_image, cine_kspace, coil_sensitivities, noise_samples


def image_of(kspace: np.ndarray) -> np.ndarray:
    shifted = np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2)), norm="ortho")
    return np.fft.fftshift(shifted, axes=(1, 2))


@pytest.mark.parametrize("matrix", [(64, 64), (63, 80)])
def test_ideal_combination_gives_the_truth(matrix: tuple[int, int]) -> None:
    kspace = cine_kspace(5, matrix, n_coils=4, noise_std=0)
    combined = (coil_sensitivities(matrix, 4).conj() * image_of(kspace)).sum(0)
    assert kspace.dtype == np.complex64 and kspace.shape == (4, *matrix)
    np.testing.assert_allclose(np.abs(combined), cine_image(5, matrix), atol=1e-5)


def test_noise_has_the_stated_level_and_gives_a_realistic_snr() -> None:
    difference = cine_kspace(0) - cine_kspace(0, noise_std=0)
    assert np.std(difference.real) == pytest.approx(NOISE_STD, rel=0.01)
    assert np.std(difference.imag) == pytest.approx(NOISE_STD, rel=0.01)
    image = cine_image(0)
    assert 20 < np.median(image[image > 0.3]) / NOISE_STD < 40
    assert np.std(noise_samples((8, 4096)).real) == pytest.approx(NOISE_STD, rel=0.02)


def test_frames_repeat_exactly_but_their_noise_does_not() -> None:
    small = {"matrix": (32, 32), "n_coils": 2}
    np.testing.assert_array_equal(cine_kspace(3, **small), cine_kspace(3, **small))
    first = cine_kspace(3, **small) - cine_kspace(3, **small, noise_std=0)
    other = cine_kspace(4, **small) - cine_kspace(4, **small, noise_std=0)
    assert abs(np.vdot(first, other)) < 0.1 * np.linalg.norm(first) * np.linalg.norm(other)
    assert not np.array_equal(cine_kspace(3, **small, seed=1), cine_kspace(3, **small))


def test_the_heart_beats_and_the_chest_stands() -> None:
    diastole, systole = cine_image(0), cine_image(BEAT_FRAMES // 2)
    assert (diastole > 0.9).sum() > 1.3 * (systole > 0.9).sum()
    np.testing.assert_array_equal(diastole[200:], systole[200:])
    assert diastole.min() >= 0 and diastole.max() <= 1 and diastole.dtype == np.float32
