# SPDX-License-Identifier: Apache-2.0
"""Centred transforms: adjoint, isometric, centred for odd and even sizes."""

import numpy as np
import pytest

from appliance.frames import read_only
from appliance.mri.fourier import remove_oversampling, resample, resize_centred, to_image, to_kspace

SIZES = [(8, 8), (9, 12), (12, 9), (11, 13)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return read_only((generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64))


@pytest.mark.parametrize("size", SIZES)
def test_to_kspace_is_inverse_and_adjoint_and_keeps_the_norm(size: tuple[int, int]) -> None:
    kspace, image = noise(3, *size), noise(3, *size, seed=1)
    assert to_image(kspace).dtype == np.complex64
    np.testing.assert_allclose(to_kspace(to_image(kspace)), kspace, atol=1e-5)
    np.testing.assert_allclose(np.vdot(to_image(kspace), image), np.vdot(kspace, to_kspace(image)), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(to_image(kspace)), np.linalg.norm(kspace), rtol=1e-5)


@pytest.mark.parametrize("n", [8, 9])
def test_to_image_is_the_defining_sum(n: int) -> None:
    kspace = noise(n)
    k = np.arange(n) - n // 2
    matrix = np.exp(2j * np.pi / n * np.outer(k, k)) / np.sqrt(n)  # written out, shares nothing with an FFT
    np.testing.assert_allclose(to_image(kspace, (0,)), matrix @ kspace, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_lands_on_the_centre(size: tuple[int, int]) -> None:
    image = to_image(np.ones(size, np.complex64))
    assert np.unravel_index(np.abs(image).argmax(), size) == (size[0] // 2, size[1] // 2)
    np.testing.assert_allclose(image[size[0] // 2, size[1] // 2], np.sqrt(size[0] * size[1]), rtol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(8, 5), (9, 4), (5, 8), (4, 9), (6, 6)])
def test_resize_keeps_the_centre(old: int, new: int) -> None:
    array = np.zeros((2, old), np.float32)
    array[:, old // 2] = 7
    out = resize_centred(read_only(array), new, 1)
    assert out.shape == (2, new) and out.dtype == np.float32
    assert (out[:, new // 2] == 7).all() and out.sum() == 14


@pytest.mark.parametrize(("n", "keep"), [(16, 8), (18, 9), (15, 7), (16, 16)])
def test_remove_oversampling_keeps_the_central_pixels(n: int, keep: int) -> None:
    kspace = noise(2, 5, n)
    wanted = resize_centred(to_image(kspace, (2,)), keep, 2)
    np.testing.assert_allclose(to_image(remove_oversampling(kspace, keep), (2,)), wanted, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(16, 24), (24, 16), (15, 20), (16, 9)])
def test_resample_keeps_level_and_position(old: int, new: int) -> None:
    y = (np.arange(old) - old // 2) / old
    image = read_only((2 + np.cos(2 * np.pi * 3 * y)).astype(np.complex64)[:, None] * np.ones(2, np.complex64))
    fine = (np.arange(new) - new // 2) / new
    np.testing.assert_allclose(resample(image, new, 0)[:, 0], 2 + np.cos(2 * np.pi * 3 * fine), atol=1e-5)
