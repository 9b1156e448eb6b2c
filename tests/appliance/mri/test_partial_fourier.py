# SPDX-License-Identifier: Apache-2.0
"""The missing side comes from symmetry; what was acquired and the phase stay."""

import numpy as np
import pytest

from appliance.frames import read_only
from appliance.mri.fourier import to_image, to_kspace
from appliance.mri.partial_fourier import fill_partial_fourier, is_partial, noise_gain
from appliance.mri.phantom import cine_image


def object_with_phase(n: int) -> np.ndarray:
    y, x = (np.arange(n) - n // 2)[:, None] / n, (np.arange(n) - n // 2) / n
    return (cine_image(0, (n, n)) * np.exp(1j * (1 - 2 * y + 1.5 * x + 3 * x * y))).astype(np.complex64)


@pytest.mark.parametrize("n", [128, 127])
@pytest.mark.parametrize("side", ["first", "last"])
@pytest.mark.parametrize("fraction", [5 / 8, 6 / 8, 7 / 8])
def test_filled_is_much_nearer_than_zero_filled(n: int, side: str, fraction: float) -> None:
    truth, n_missing = object_with_phase(n), round(n * (1 - fraction))
    first, last = (n_missing, n - 1) if side == "first" else (0, n - 1 - n_missing)
    kspace = to_kspace(truth, (0,))
    kspace[:first] = kspace[last + 1 :] = 0
    cut = read_only(to_image(kspace, (0,)))
    image = fill_partial_fourier(cut, first, last)
    assert is_partial(n, first, last) and image.dtype == np.complex64
    errors = [np.linalg.norm(np.abs(part) - np.abs(truth)) for part in (image, cut)]
    assert errors[0] < 0.2 * errors[1]
    inside = np.abs(truth) > 0.3
    assert np.abs(np.angle(image * truth.conj()))[inside].mean() < 0.05


def test_acquired_lines_are_not_changed() -> None:
    kspace = to_kspace(object_with_phase(64), (0,))
    kspace[:20] = 0
    filled = to_kspace(fill_partial_fourier(to_image(kspace, (0,)), 20, 63), (0,))
    np.testing.assert_allclose(filled[20:], kspace[20:], atol=1e-5)
    assert np.abs(filled[:20]).max() > 0.01


@pytest.mark.parametrize(("n", "first", "last"), [(128, 32, 127), (128, 0, 111), (127, 48, 126)])
def test_noise_grows_as_foretold(n: int, first: int, last: int) -> None:
    generator, truth = np.random.default_rng(0), object_with_phase(n)
    kspace = to_kspace(truth, (0,))
    kspace[:first] = kspace[last + 1 :] = 0
    clean = to_image(kspace, (0,))
    noise = 0.01 * (generator.standard_normal((n, n)) + 1j * generator.standard_normal((n, n))).astype(np.complex64)
    noise[:first] = noise[last + 1 :] = 0
    noise = to_image(noise, (0,))
    inside = np.abs(truth) > 0.4
    before = noise[inside].real.std()
    difference = np.abs(fill_partial_fourier(clean + noise, first, last)) - np.abs(
        fill_partial_fourier(clean, first, last)
    )
    assert difference[inside].std() / before == pytest.approx(noise_gain(n, first, last), rel=0.1)


def test_dropped_lines_at_the_edge_are_not_partial_fourier() -> None:
    assert not is_partial(256, 0, 255) and not is_partial(256, 1, 254) and not is_partial(256, 8, 255)
    assert is_partial(256, 32, 255) and is_partial(256, 0, 223)


def test_a_centre_that_was_not_passed_is_told() -> None:
    with pytest.raises(
        ValueError, match=r"lines 126 … 255 of 256 hold 2 lines beyond the centre 128; acquire at least 4"
    ):
        fill_partial_fourier(np.ones((256, 2), np.complex64), 126, 255)
