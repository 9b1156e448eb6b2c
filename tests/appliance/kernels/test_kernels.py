# SPDX-License-Identifier: Apache-2.0
"""The CPU build of the kernels against numpy: what it replaces on a GPU is what numpy does on a CPU."""

import numpy as np
import pytest

from appliance.imaging.quantise import to_uint16
from appliance.imaging.remove_noise import MOST_SIGMA, remove_noise
from appliance.mri.fourier import transforms
from appliance.mri.unmix import Unmixing, unmix

SIZES = [(16, 16), (17, 16), (16, 19), (33, 47), (1, 1), (1, 6), (2, 3), (64, 5)]
LEVEL, SCALE = 12.5, 987.6
EXTREMES = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 3.4e38, -3.4e38, 1e-45, 65535.5, 0.5, 1.5, 2.5, 65534.5]


def images(shape, seed=0):
    """An image, what a model may name as its noise, and a level map; extreme values in each where there is room."""
    rng = np.random.default_rng(seed)
    made = [rng.normal(500, 400, shape), rng.normal(0, 0.1, shape), rng.uniform(-5, 60, shape)]
    made = [one.astype(np.float32) for one in made]
    if min(shape) > 10:
        for one in made:
            one.flat[rng.permutation(one.size)[: len(EXTREMES)]] = EXTREMES
    return made


def padded_to(shape, multiple):
    return tuple(-(-n // multiple) * multiple for n in shape)


def by_numpy(image, noise, level, strength=1.0, multiple=1):
    """What the denoise stage does: gives what the model would get, and the image that comes back."""
    given = []

    def run(both):
        given.append(both[0])
        return (noise[None, None],)

    return remove_noise(image, level, SCALE, run, strength=strength, multiple_px=multiple).image, given[0]


@pytest.mark.parametrize("multiple", [1, 2, 8])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("shape", SIZES)
def test_the_model_gets_what_numpy_would_give_it(cpu, guarded, shape, mapped, multiple):
    image, noise, level_map = images(shape)
    rows, columns = padded_to(shape, multiple)
    out = guarded((2, rows, columns), np.float32)
    cpu("to_model", image, level_map if mapped else None, LEVEL, SCALE, *shape, rows, columns, out.array)
    with np.errstate(invalid="ignore", over="ignore"):  # Inf - Inf, and the largest numbers, are in there
        _, expected = by_numpy(image, noise, level_map if mapped else LEVEL, multiple=multiple)
    np.testing.assert_array_equal(out.check(), expected)  # the same operations in the same precision: exactly


def came_back(cpu, guarded, image, noise, level_map, level=0.0, scale=1.0, strength=1.0, low=0.0, gain=1.0):
    """Run `from_model`; gives image, pixels and how many were clipped."""
    out, pixels = guarded(image.shape, np.float32), guarded(image.shape, np.uint16)
    n_clipped = np.zeros(1, np.uint32)
    numbers = (level, scale, strength, MOST_SIGMA, low, gain)
    cpu(
        "from_model", image, noise, level_map, *numbers, *image.shape, noise.shape[1],
        out.array, pixels.array, n_clipped,
    )  # fmt: skip
    return out.check(), pixels.check(), int(n_clipped[0])


@pytest.mark.parametrize("strength", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("shape", SIZES)
def test_the_way_back_is_what_numpy_would_do(cpu, guarded, shape, mapped, strength):
    image, _, level_map = images(shape)
    image = np.abs(image)  # the kernel is for magnitudes; below zero numpy allows less
    noise = images(padded_to(shape, 8), seed=1)[1]
    with np.errstate(invalid="ignore", over="ignore"):
        expected, _ = by_numpy(image, noise, level_map if mapped else LEVEL, strength, multiple=8)
        expected_pixels, n_clipped = to_uint16(expected, 33.3)
        out, pixels, got_clipped = came_back(
            cpu, guarded, image, noise, level_map if mapped else None, LEVEL, SCALE, strength, gain=33.3
        )
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(pixels, expected_pixels)
    assert got_clipped == n_clipped


def test_without_noise_the_image_comes_back_as_it_was(cpu, guarded):
    image, noise, _ = images((33, 47))
    image, noise = np.nan_to_num(image), np.nan_to_num(noise)  # NaN of the model would come through, to be refused
    out, _, _ = came_back(cpu, guarded, image, noise, None, level=0.0, scale=1e6)
    np.testing.assert_array_equal(out, image)


def test_pixels_at_the_edges_of_a_window(cpu, guarded):
    """Halves round to even, the window's ends are inside it, and what is outside is counted."""
    low, gain = 100.0, 2.0
    values = np.array([[99.7, 99.75, 100.0, 100.25, 100.75, 32867.5, 32867.74, 32867.8, np.nan, np.inf, -np.inf]])
    image = values.astype(np.float32)
    _, pixels, n_clipped = came_back(cpu, guarded, image, np.zeros_like(image), None, low=low, gain=gain)
    assert pixels.tolist() == [[0, 0, 0, 0, 2, 65535, 65535, 65535, 0, 65535, 0]]
    scaled = np.rint((image - np.float32(low)) * np.float32(gain))
    assert n_clipped == int((~((scaled >= 0) & (scaled <= 65535))).sum()) == 5


def test_every_integer_of_sixteen_bits_survives(cpu, guarded):
    image = np.arange(65536, dtype=np.float32).reshape(256, 256)
    _, pixels, n_clipped = came_back(cpu, guarded, image, np.zeros_like(image), None)
    np.testing.assert_array_equal(pixels, image.astype(np.uint16))
    assert n_clipped == 0


def coil_images(n_coils, fold, n_rows, n_x, seed=0):
    rng = np.random.default_rng(seed)

    def gaussian(*shape):
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)

    return gaussian(n_coils, fold, n_rows, n_x), gaussian(n_coils, n_rows, n_x)


def unmixed(cpu, guarded, weights, lines, offset):
    n_coils, fold, n_rows, n_x = weights.shape
    n_y = fold * n_rows
    folded = np.ascontiguousarray(transforms(lines).ifft2(lines, axes=(1, 2), norm="forward"))
    phase = 2j * np.pi * (offset - n_y // 2) / n_y * (np.arange(n_y) - n_y // 2)
    out = guarded((n_y, n_x), np.complex64)
    cpu("unmix", weights, folded, np.exp(phase).astype(np.complex64), n_coils, fold, n_rows, n_x, out.array)
    return out.check(), folded


@pytest.mark.parametrize(
    ("n_coils", "fold", "n_rows", "n_x"),
    [(8, 2, 32, 32), (1, 1, 16, 16), (5, 3, 11, 17), (4, 2, 9, 8), (3, 4, 5, 7), (2, 1, 1, 1), (32, 1, 24, 20)],
)
def test_unmixing_is_the_reconstruction_of_the_live_path(cpu, guarded, n_coils, fold, n_rows, n_x):
    weights, lines = coil_images(n_coils, fold, n_rows, n_x)
    offset = fold - 1
    index = np.arange(n_rows) * fold + offset
    expected = unmix(Unmixing(weights, n_x), lines, index)
    out, folded = unmixed(cpu, guarded, weights, lines, offset)
    # numpy fuses some multiply-adds: each of the products and sums may differ by half a unit in the last place of
    # what it adds up, at most that of the sum of all magnitudes.
    largest = (np.abs(weights).max() * np.abs(folded)).sum(axis=0).max()
    assert np.abs(out - expected).max() <= (n_coils + 3) * np.finfo(np.float32).eps * largest


def test_one_bad_sample_spoils_the_pixels_that_it_folds_into_and_no_other(cpu, guarded):
    weights, _ = coil_images(4, 2, 8, 8)
    folded = np.ones((4, 8, 8), np.complex64)
    folded[2, 3, 5] = np.nan
    out = guarded((16, 8), np.complex64)
    cpu("unmix", weights, folded, np.ones(16, np.complex64), 4, 2, 8, 8, out.array)
    spoilt = np.argwhere(np.isnan(out.check()))
    # row 3 of 8 of the FFT is, centred, at (3 + 16 // 2) % 8 of each fold; column 5 at (5 + 4) % 8
    assert spoilt.tolist() == [[3, 1], [11, 1]]
