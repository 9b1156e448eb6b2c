# SPDX-License-Identifier: Apache-2.0
"""The small FFT with fused weights gives what the full, centred, zero-filled way gives."""

import numpy as np
import pytest

from appliance.device import count_gpus
from appliance.frames import read_only
from appliance.mri.fourier import resize_centred, to_image
from appliance.mri.phantom import noise_samples
from appliance.mri.unmix import fuse, noise_std, unmix


def random_weights(*shape: int, seed: int = 1) -> np.ndarray:
    return noise_samples(shape, 1.0, seed)


@pytest.mark.parametrize(("n_y", "acceleration"), [(24, 1), (25, 1), (24, 2), (30, 3), (24, 4), (25, 2), (31, 3)])
@pytest.mark.parametrize(("n_kx", "n_x"), [(16, 16), (17, 17), (32, 16), (30, 15), (33, 17)])
@pytest.mark.parametrize("offset", [0, 1])
def test_unmix_is_the_zero_filled_image_times_weights(
    n_y: int, acceleration: int, n_kx: int, n_x: int, offset: int
) -> None:
    index = np.arange(offset, n_y, acceleration)
    lines, weights = read_only(noise_samples((3, len(index), n_kx), 1.0)), random_weights(3, n_y, n_x)
    whitening = random_weights(3, 3, seed=2)
    kspace = np.zeros((3, n_y, n_kx), np.complex64)
    kspace[:, index] = np.einsum("st,tlk->slk", whitening, lines)
    wanted = (weights * resize_centred(to_image(kspace), n_x, 2)).sum(0)
    image = unmix(fuse(weights, acceleration, n_kx, whitening), lines, index)
    assert image.dtype == np.complex64
    np.testing.assert_allclose(image, wanted, atol=2e-6 * np.abs(wanted).max() * 3)


def test_lines_that_are_missing_count_as_zero() -> None:
    index = np.arange(1, 24, 2)
    lines, unmixing = noise_samples((2, 12, 16), 1.0), fuse(random_weights(2, 24, 16), 2, 16, None)
    gap = np.delete(np.arange(12), [3, 11])
    holed = lines.copy()
    holed[:, [3, 11]] = 0
    np.testing.assert_allclose(unmix(unmixing, lines[:, gap], index[gap]), unmix(unmixing, holed, index), atol=1e-5)


def test_another_number_of_coils_is_told() -> None:
    with pytest.raises(ValueError, match="2 coils, but 3 when calibrated; keep the coil selection"):
        unmix(fuse(random_weights(3, 24, 16), 2, 16, None), noise_samples((2, 12, 16), 1.0), np.arange(0, 24, 2))


@pytest.mark.parametrize("acceleration", [1, 2, 3])
def test_noise_is_as_foretold(acceleration: int) -> None:
    """Monte Carlo with correlated noise."""
    n_y, n_x, n_coils = 12, 8, 3
    unmixing = fuse(random_weights(n_coils, n_y, n_x), acceleration, n_x, None)
    mix = random_weights(n_coils, n_coils, seed=3)
    index = np.arange(0, n_y, acceleration)
    noise = [np.tensordot(mix, noise_samples((n_coils, len(index), n_x), 1.0, s), 1) for s in range(3000)]
    measured = np.std([unmix(unmixing, sample, index).real for sample in noise], axis=0)
    foretold = noise_std(unmixing, 2 * mix.astype(complex) @ mix.conj().T, len(index))
    assert foretold.dtype == np.float32
    np.testing.assert_allclose(measured, foretold, rtol=0.07)  # 5 standard errors of 3000 samples


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="no CUDA device answers")
def test_the_device_gives_what_the_host_gives() -> None:
    from appliance.arrays import to_device, to_host
    from appliance.mri.unmix import beside

    index = np.arange(0, 24, 2)
    lines, unmixing = noise_samples((3, 12, 32), 1.0), fuse(random_weights(3, 24, 16), 2, 32, None)
    on_device = to_device(lines)
    image = to_host(unmix(beside(unmixing, on_device), on_device, index))
    np.testing.assert_allclose(image, unmix(unmixing, lines, index), atol=1e-4)
