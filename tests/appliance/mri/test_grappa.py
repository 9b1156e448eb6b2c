# SPDX-License-Identifier: Apache-2.0
"""GRAPPA against a naive one in k-space, written line by line, and on data for which a kernel is exact."""

import numpy as np
import pytest

from appliance.frames import read_only
from appliance.mri.combine_coils import combine_coils
from appliance.mri.fourier import to_image
from appliance.mri.grappa import Kernel, calibrate, unmixing_weights
from appliance.mri.phantom import cine_kspace, coil_sensitivities


def exact_kspace(n_ky: int, n_kx: int, n_coils: int = 8, seed: int = 0) -> np.ndarray:
    """Random object, sensitivities of five harmonics along y: two acquired lines hold all of the lines between."""
    generator = np.random.default_rng(seed)
    shape = (n_ky, n_kx)
    rho = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    shape = (n_coils, 5)
    harmonics = generator.standard_normal(shape) + 1j * generator.standard_normal(shape)
    kspace = sum(harmonics[:, m, None, None] * np.roll(rho, m - 2, axis=0) for m in range(5))
    kspace[:, :, :4] = kspace[:, :, -4:] = 0  # nothing at the columns where the fit takes zero for granted
    return read_only(kspace.astype(np.complex64))


def naive_apply(kernel: Kernel, kspace: np.ndarray) -> np.ndarray:
    """Fill the lines between every R-th one, sample by sample as the kernel's docstring says; periodic edges."""
    _, n_ky, n_kx = kspace.shape
    _, _, _, n_b, n_d = kernel.weights.shape
    acceleration = kernel.acceleration
    filled = np.zeros_like(kspace)
    filled[:, ::acceleration] = kspace[:, ::acceleration]
    for line in range(0, n_ky, acceleration):
        for r in range(1, acceleration):
            for b in range(n_b):
                source = (line + (b - (n_b // 2 - 1)) * acceleration) % n_ky
                for d in range(n_d):
                    columns = (np.arange(n_kx) + d - n_d // 2) % n_kx
                    taps = kernel.weights[r - 1, :, :, b, d]
                    filled[:, (line + r) % n_ky] += taps @ kspace[:, source][:, columns]
    return filled


def naive_fit(calibration: np.ndarray, acceleration: int, kernel: tuple[int, int]) -> np.ndarray:
    """The kernel by numpy's least squares, one window at a time, zeros beyond the columns."""
    n_b, n_d = kernel
    half = n_d // 2
    padded = np.pad(calibration.astype(np.complex128), ((0, 0), (0, 0), (2 * half, 2 * half)))
    back = (n_b // 2 - 1) * acceleration
    weights = np.zeros((acceleration - 1, len(calibration), len(calibration), n_b, n_d), np.complex128)
    for r in range(1, acceleration):
        rows, targets = [], []
        for line in range(back, calibration.shape[1] - (n_b // 2) * acceleration):
            for column in range(half, padded.shape[2] - half):
                lines = [line - back + b * acceleration for b in range(n_b)]
                rows.append(padded[:, lines, column - half : column + half + 1].ravel())
                targets.append(padded[:, line + r, column])
        solution = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
        weights[r - 1] = solution.T.reshape(weights.shape[1:])
    return weights


@pytest.mark.parametrize(("acceleration", "kernel"), [(2, (2, 5)), (2, (4, 3)), (3, (2, 3)), (4, (2, 5))])
def test_fit_is_numpys_least_squares(acceleration: int, kernel: tuple[int, int]) -> None:
    block = read_only(cine_kspace(0, (96, 48), n_coils=3)[:, 36:60])
    fitted = calibrate(block, acceleration, kernel, regularisation=0)
    wanted = naive_fit(block, acceleration, kernel)
    np.testing.assert_allclose(fitted.weights, wanted, atol=2e-3 * np.abs(wanted).max())  # single-precision products


@pytest.mark.parametrize(("acceleration", "kernel"), [(2, (2, 3)), (2, (4, 5)), (3, (2, 5)), (4, (2, 3)), (4, (4, 3))])
@pytest.mark.parametrize("n_kx", [24, 25])
def test_exact_on_data_with_an_exact_kernel(acceleration: int, kernel: tuple[int, int], n_kx: int) -> None:
    kspace = exact_kspace(48, n_kx)
    fitted = calibrate(kspace[:, 10:34], acceleration, kernel, regularisation=1e-5)
    error = np.linalg.norm(naive_apply(fitted, kspace) - kspace) / np.linalg.norm(kspace)
    assert error < 1e-4  # what the regularisation leaves: proportional to it down to 1e-6


@pytest.mark.parametrize("acceleration", [2, 3, 4])
@pytest.mark.parametrize("size", [(48, 30), (60, 31)])
def test_image_domain_is_the_convolution_in_kspace(acceleration: int, size: tuple[int, int]) -> None:
    kspace = read_only(cine_kspace(0, size))
    maps = coil_sensitivities(size)
    centre = size[0] // 2
    kernel = calibrate(kspace[:, centre - 12 : centre + 12], acceleration, (4, 5))
    wanted = combine_coils(to_image(naive_apply(kernel, kspace)), maps)
    sampled = np.zeros_like(kspace)
    sampled[:, ::acceleration] = kspace[:, ::acceleration]
    image = (unmixing_weights(kernel, maps) * to_image(sampled)).sum(0)
    assert image.dtype == np.complex64
    np.testing.assert_allclose(image, wanted, atol=1e-5 * np.abs(wanted).max() * 10)


def test_more_regularisation_gives_smaller_weights() -> None:
    block = cine_kspace(0, (96, 64))[:, 36:60]
    norms = [np.linalg.norm(calibrate(block, 2, (4, 5), r).weights) for r in (1e-6, 1e-3, 1e-1, 1)]
    assert norms == sorted(norms, reverse=True)


def test_too_few_lines_are_told() -> None:
    with pytest.raises(ValueError, match="12 lines × 64 columns cannot hold a kernel of 13 × 5"):
        calibrate(np.ones((2, 12, 64), np.complex64), 4, (4, 5))
