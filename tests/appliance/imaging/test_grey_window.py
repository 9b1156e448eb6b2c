# SPDX-License-Identifier: Apache-2.0
"""Grey levels: robust, steady, and safe with numbers that are not."""

import numpy as np

from appliance.imaging.grey_window import SlowWindow, grey_window, to_grey


def test_single_spikes_do_not_darken_the_image():
    image = np.random.default_rng(0).uniform(0, 100, (64, 64)).astype(np.float32)
    low, high = grey_window(image)
    image[10, 10] = 1e9
    np.testing.assert_allclose(grey_window(image), (low, high), atol=1)


def test_what_is_not_finite_is_ignored_and_black():
    image = np.full((4, 4), np.nan, np.float32)
    assert grey_window(image) == (0.0, 1.0)
    assert not to_grey(image, (0.0, 1.0)).any()
    image[::2, ::2] = [[0, 1], [2, 3]]
    image[1, 1] = np.inf
    low, high = grey_window(image)
    assert 0 <= low < high <= 3
    assert to_grey(image, (low, high))[1, 1] == 255


def test_a_flat_image_has_a_window():
    low, high = grey_window(np.full((4, 4), 7, np.float32))
    assert high > low == 7


def test_the_window_follows_slowly_and_arrives():
    dark = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    window = SlowWindow(dark)
    start, target = grey_window(dark)[1], grey_window(4 * dark)[1]
    seen = [window.follow(4 * dark)[1] for _ in range(400)]
    assert seen[0] == start
    assert max(np.diff(seen)) <= 0.151 * (target - start)  # no flicker
    assert abs(seen[-1] - target) < 0.01 * target
