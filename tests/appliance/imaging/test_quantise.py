# SPDX-License-Identifier: Apache-2.0
"""One scale for a scan: exact at the ends, clipped and counted beyond."""

from __future__ import annotations

import numpy as np
import pytest

from appliance.imaging.quantise import FIRST_MAXIMUM, ScanScale, remarks, scale_for, to_uint16


@pytest.mark.parametrize("maximum", [1e-9, 0.37, 1.0, 4e6])
def test_the_first_maximum_becomes_8191_and_eight_times_it_still_fits(maximum: float) -> None:
    image = np.array([[0, maximum / 2], [maximum, maximum / 4]], np.float32)
    pixels, n_clipped = to_uint16(image, scale_for(image))
    assert pixels.dtype == np.uint16
    assert pixels.max() == FIRST_MAXIMUM
    assert n_clipped == 0
    assert np.abs(pixels / scale_for(image) - image).max() <= 0.501 / scale_for(image)
    assert to_uint16(image * 8, scale_for(image))[1] == 0
    assert to_uint16(image * 8.01, scale_for(image))[1] == 1


def test_what_does_not_fit_is_clipped_and_counted() -> None:
    image = np.array([-1.0, np.nan, np.inf, -np.inf, 70000.0, 65535.0, 0.0], np.float32)
    pixels, n_clipped = to_uint16(image, 1.0)
    assert pixels.tolist() == [0, 0, 65535, 0, 65535, 65535, 0]
    assert n_clipped == 5


def test_a_scale_for_an_image_without_signal_is_one() -> None:
    assert scale_for(np.zeros((2, 2), np.float32)) == 1.0
    assert scale_for(np.full((2, 2), np.nan, np.float32)) == 1.0
    assert scale_for(np.array([np.inf, 2.0], np.float32)) == FIRST_MAXIMUM / 2


def test_the_input_is_not_modified() -> None:
    image = np.array([np.nan, 3.0], np.float32)
    image.flags.writeable = False
    to_uint16(image, scale_for(image))


def test_an_empty_first_image_does_not_decide_the_scale() -> None:
    scale = ScanScale()
    assert scale.of(np.zeros((2, 2), np.float32)) == 1.0
    assert not scale.decided
    image = np.full((2, 2), 1e-3, np.float32)
    assert to_uint16(image, scale.of(image))[0].max() == FIRST_MAXIMUM
    assert scale.of(image * 5) == scale.of(image)


def test_what_quantising_costs_is_told() -> None:
    assert remarks(np.array([0, 8191], np.uint16), 0) == ()
    assert remarks(np.zeros(2, np.uint16), 0) == ()
    assert remarks(np.array([0, 3], np.uint16), 0)[0].startswith("COARSE: only 3 grey levels")
    assert remarks(np.array([0, 65535], np.uint16), 2)[0].startswith("CLIPPED: 2 pixels")
