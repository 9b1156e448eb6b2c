# SPDX-License-Identifier: Apache-2.0
"""From raw lines to the image the header asks for."""

import numpy as np
import pytest

from appliance.frames import Encoding, read_only
from appliance.mri.fourier import resize_centred, to_image, to_kspace
from appliance.mri.phantom import NOISE_STD, cine_image, cine_kspace
from appliance.mri.reconstruct import (
    Grid,
    calibrate_slice,
    calibration_run,
    displacement_mm,
    imaging_lines,
    noise_map,
    reconstruct,
    zero_filled,
)


def grid(
    encoded: tuple[int, int],
    recon: tuple[int, int] | None = None,
    encoded_fov: tuple[float, float] = (300, 300),
    recon_fov: tuple[float, float] | None = None,
    acceleration: int = 2,
    ky_centre: int | None = None,
) -> Grid:
    """Pairs are (x, y)."""
    return Grid.of(
        Encoding(
            encoded_matrix=(*encoded, 1),
            recon_matrix=(*(recon or encoded), 1),
            encoded_fov_mm=(*encoded_fov, 5.0),
            recon_fov_mm=(*(recon_fov or encoded_fov), 5.0),
            n_coils=8,
            acceleration_y=acceleration,
            ky_centre=ky_centre,
        )
    )


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.abs(image) - truth) / np.linalg.norm(truth))


def run(grid: Grid, kspace: np.ndarray, offset: int = 0, **calibration: object) -> np.ndarray:
    """Undersample, calibrate on the 24 central lines, reconstruct."""
    index, centre = np.arange(offset, grid.n_ky, grid.acceleration), grid.n_ky // 2
    block = np.arange(centre - 12, centre + 12)
    unmixing = calibrate_slice(grid, kspace[:, block], block, **calibration)
    return reconstruct(unmixing, grid, kspace[:, index], index)


@pytest.mark.parametrize(("acceleration", "limit"), [(1, 0.02), (2, 0.03), (3, 0.04), (4, 0.1)])
@pytest.mark.parametrize("size", [(96, 96), (95, 127), (120, 101)])  # (x, y)
def test_unfolds_at_every_acceleration_size_and_offset(size: tuple[int, int], acceleration: int, limit: float) -> None:
    kspace = read_only(cine_kspace(0, size[::-1], noise_std=0.001))
    truth = cine_image(0, size[::-1])
    for offset in range(acceleration):
        image = run(grid(size, acceleration=acceleration), kspace, offset)
        assert image.dtype == np.complex64 and image.shape == size[::-1]
        assert nrmse(image, truth) < limit  # zero-filling: 0.3 and more from R=2 on


def test_readout_oversampling_and_phase_oversampling_are_removed() -> None:
    truth = cine_image(0, (128, 128))
    kspace = cine_kspace(0, (128, 128), noise_std=0.001)
    coil_images = np.asarray(to_image(kspace))
    wide = to_kspace(resize_centred(resize_centred(coil_images, 256, 2), 160, 1))
    described = grid((256, 160), (128, 128), (600, 375), (300, 300))
    image = run(described, read_only(wide.astype(np.complex64)))
    assert image.shape == (128, 128)
    assert nrmse(image, truth) < 0.04


def test_larger_and_smaller_final_matrix_keep_level_and_place() -> None:
    kspace = read_only(cine_kspace(0, (96, 96), noise_std=0.0))
    for size in ((192, 192), (97, 129), (64, 80)):
        image = run(grid((96, 96), size), kspace)
        assert nrmse(image, cine_image(0, size[::-1])) < 0.12  # edges are as sharp as 96 (or less) samples allow


@pytest.mark.parametrize("acceleration", [1, 2])
def test_partial_fourier_is_nearer_than_zero_filling(acceleration: int) -> None:
    described = grid((96, 128), acceleration=acceleration, ky_centre=32)  # as scanners send it: the first lines missing
    kspace = cine_kspace(0, (128, 96), noise_std=0.001)
    ky = np.arange(0, 96, acceleration)
    index = described.index(ky)
    assert index[0] == 32 and index[-1] >= 126
    block = np.arange(52, 76)
    unmixing = calibrate_slice(described, kspace[:, block], block)
    image = reconstruct(unmixing, described, kspace[:, index], index)
    truth = cine_image(0, (128, 96))
    unfilled = to_kspace(truth.astype(np.complex64), (0,))
    unfilled[:32] = 0
    assert nrmse(image, truth) < 0.7 * nrmse(to_image(unfilled, (0,)), truth)


def test_whitening_lowers_the_noise_and_keeps_the_level() -> None:
    kspace, generator = cine_kspace(0, (96, 96), noise_std=0), np.random.default_rng(0)
    mix = 0.01 * (np.eye(8) + 0.5 * generator.standard_normal((8, 8)))
    mix[2] *= 10  # a noisy coil
    covariance = (2 * mix @ mix.T).astype(complex)
    white = generator.standard_normal((2, 8, 96 * 96))
    noise = (mix @ (white[0] + 1j * white[1])).reshape(kspace.shape).astype(np.complex64)
    truth, described = cine_image(0, (96, 96)), grid((96, 96))
    block, index, body = np.arange(36, 60), np.arange(0, 96, 2), truth > 0.4
    level = []
    for known in (None, covariance):
        unmixing = calibrate_slice(described, (kspace + noise)[:, block], block, known)
        signal, rest = (reconstruct(unmixing, described, part[:, index], index)[body] for part in (kspace, noise))
        np.testing.assert_allclose(np.abs(signal).mean(), truth[body].mean(), rtol=0.1)
        level.append(np.std(rest))
    assert level[1] < 0.5 * level[0]


@pytest.mark.parametrize("acceleration", [1, 2, 3])
def test_noise_map_is_the_noise_of_the_magnitude(acceleration: int) -> None:
    described = grid((96, 96), (120, 80), acceleration=acceleration)
    block, index = np.arange(36, 60), np.arange(0, 96, acceleration)
    unmixing = calibrate_slice(described, cine_kspace(0, (96, 96))[:, block], block)
    frames = [cine_kspace(0, (96, 96), seed=s)[:, index] for s in range(24)]
    measured = np.var([np.abs(reconstruct(unmixing, described, f, index)) for f in frames], axis=0, ddof=1)
    foretold = noise_map(unmixing, described, index, 2 * NOISE_STD**2 * np.eye(8, dtype=complex))
    assert foretold.dtype == np.float32 and foretold.shape == (80, 120)
    bright = cine_image(0, (80, 120)) > 0.4
    assert np.sqrt(measured[bright].mean() / (foretold[bright] ** 2).mean()) == pytest.approx(1, abs=0.05)
    ordered = np.argsort(foretold[bright])
    quiet, loud = np.array_split(measured[bright][ordered], 2)
    assert acceleration == 1 or loud.mean() > 1.1 * quiet.mean()  # it also says where


def test_zero_filled_has_the_level_of_a_full_frame() -> None:
    kspace = read_only(cine_kspace(0, (96, 96), noise_std=0))
    lines = np.union1d(np.arange(0, 96, 2), np.arange(36, 60))
    truth = cine_image(0, (96, 96))
    alone = (truth > 0) & (np.roll(truth, 48, axis=0) == 0)  # nothing folds onto these pixels at R=2
    np.testing.assert_allclose(zero_filled(grid((96, 96)), kspace, np.arange(96)), truth, atol=1e-4)
    for index, tolerance in ((lines, 0.03), (np.arange(1, 96, 2), 1e-3)):
        image = zero_filled(grid((96, 96)), kspace[:, index], index)
        assert image.dtype == np.float32 and alone.sum() > 100
        assert np.mean(image[alone] - truth[alone]) == pytest.approx(0, abs=tolerance)


def test_imaging_lines_are_the_regular_ones() -> None:
    index = np.array([1, 3, 5, 6, 7, 8, 9, 11, 15])
    only = np.isin(index, [6, 8])
    assert index[imaging_lines(index, only, 2)].tolist() == [1, 3, 5, 7, 9, 11, 15]
    assert index[imaging_lines(index, np.zeros(9, bool), 2)].tolist() == [1, 3, 5, 7, 9, 11, 15]
    assert len(imaging_lines(index, np.zeros(9, bool), 1)) == 9
    with pytest.raises(ValueError, match="reference lines only; check the flags of its imaging lines"):
        imaging_lines(index, np.ones(9, bool), 2)


def test_calibration_run_is_the_one_at_the_centre() -> None:
    index = np.r_[0:40:2, 40:56, 56:100:2]
    assert index[calibration_run(index, 96)].tolist() == list(range(40, 57))
    assert calibration_run(np.arange(256), 256) == slice(104, 153)
    for lines in (np.arange(0, 96, 2), np.arange(1, 96, 2), np.r_[45:96], np.r_[0:40]):
        with pytest.raises(ValueError, match=r"consecutive lines at the centre line 48 are too few .* set method: rss"):
            calibration_run(lines, 96)


def test_calibration_without_signal_is_told() -> None:
    with pytest.raises(ValueError, match="hold no signal; check coil connection and transmitter"):
        calibrate_slice(grid((32, 96)), np.zeros((8, 24, 32), np.complex64), np.arange(36, 60))


def test_a_short_run_takes_a_shorter_kernel() -> None:
    kspace, index = cine_kspace(0, (96, 96), noise_std=0.001), np.arange(0, 96, 4)
    unmixing = calibrate_slice(grid((96, 96), acceleration=4), kspace[:, 43:54], np.arange(43, 54), kernel=(4, 5))
    image = reconstruct(unmixing, grid((96, 96), acceleration=4), kspace[:, index], index)
    assert nrmse(image, cine_image(0, (96, 96))) < 0.15


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"encoded": (256, 4)}, "matrix 256 × 4 → 256 × 4 at acceleration 2 is not supported"),
        ({"encoded": (64, 64), "acceleration": 5}, "use at least 8 samples and an acceleration of 1 to 4"),
        ({"encoded": (64, 64), "recon_fov": (400, 300)}, "the reconstructed one must lie within the encoded one"),
    ],
)
def test_headers_that_make_no_sense_are_told(change: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        grid(**change)


def test_displacement_is_that_of_the_farthest_corner() -> None:
    moved = np.eye(4)
    moved[2, 3] = 3
    assert displacement_mm(np.eye(4), moved, grid((64, 64))) == pytest.approx(3)
    turned = np.eye(4)
    turned[:2, :2] = [[0, -1], [1, 0]]
    assert displacement_mm(np.eye(4), turned, grid((64, 64))) == pytest.approx(np.sqrt(2) * 64 * np.sqrt(2))
