# SPDX-License-Identifier: Apache-2.0
"""Rules on the image: ghosts, and what can be told where there is no k-space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.faults.detector import default_thresholds
from appliance.mri.baseline import Baseline
from appliance.mri.image_quality import find_ghosting, find_unusable_image, ghost_level, judge_image
from appliance.mri.phantom import cine_image
from appliance.mri.rules import RULES

LIMITS = default_thresholds(RULES)


def body(n_y=256, n_x=256, noise=0.01):
    """A bright ellipse over a third of the field of view, with Rician background."""
    y, x = np.ogrid[-1 : 1 : n_y * 1j, -1 : 1 : n_x * 1j]
    rng = np.random.default_rng(0)
    image = ((x / 0.7) ** 2 + (y / 0.35) ** 2 < 1) + noise * rng.standard_normal((n_y, n_x))
    return np.hypot(image, noise * rng.standard_normal((n_y, n_x))).astype(np.float32)


@pytest.mark.parametrize("shape", [(256, 256), (131, 97), (64, 100), (512, 320)])
@pytest.mark.parametrize("part", [0.0, 0.05, 0.1, 0.3])
def test_the_ghost_level_is_the_part_that_was_planted(shape, part):
    clean = body(*shape)
    image = clean + part * np.roll(clean, shape[0] // 2, axis=0)
    assert ghost_level(image) == pytest.approx(part, abs=0.01 + 0.1 * part)  # edges of an odd or coarse grid


@pytest.mark.parametrize("frame_index", [0, 12, 40, 100])
def test_a_chest_has_no_ghost_and_one_made_by_alternating_lines_is_warned_of(frame_index):
    image = cine_image(frame_index)
    assert find_ghosting(image, LIMITS["ghosting"])[1] == []
    kspace = np.fft.fftshift(np.fft.fft2(image))
    kspace[1::2] *= np.exp(0.5j)  # the N/2 ghost of echo-planar imaging
    ghosted = np.abs(np.fft.ifft2(np.fft.ifftshift(kspace))).astype(np.float32)
    _, (found,) = find_ghosting(ghosted, LIMITS["ghosting"])
    assert (found.kind, found.severity) == ("ghosting", "warning")
    assert found.message == (
        f"ghosts of {100 * found.measured:.0f} % of the body's signal along the phase direction; "
        "check for motion of the patient and, in EPI, the phase correction"
    )


def test_no_room_for_a_ghost_is_not_judged():
    assert ghost_level(np.ones((128, 128), np.float32)) is None
    assert ghost_level(np.zeros((128, 128), np.float32)) is None
    assert ghost_level(body(8, 8)) is None
    assert find_ghosting(np.ones((128, 128), np.float32), 0.1) == (None, [])


def test_pixels_that_are_not_numbers_and_empty_images():
    image = cine_image(0).copy()
    assert find_unusable_image(image) == []
    image[3, 4] = np.nan
    (found,) = find_unusable_image(image)
    assert (found.kind, found.message) == ("not_finite", "1 pixels are not numbers; do not use this image")
    (found,) = find_unusable_image(np.zeros_like(image))
    assert found.kind == "all_zero"
    assert found.message == "the image holds only zeros; check the receiver and repeat the scan"


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1), (np.uint16, 60000), (np.int16, 100)])
def test_images_alone_show_a_signal_drop_and_a_frozen_display(dtype, scale):
    def image(index, part=1.0):
        return (scale * part * cine_image(index)).astype(dtype)

    baseline = Baseline()
    for index in range(6):
        found, levels, _ = judge_image(image(index), baseline, LIMITS)
        assert found == []
        baseline.accept(levels)
    assert [f.kind for f in judge_image(image(5), baseline, LIMITS)[0]] == ["frozen"]
    (found,) = judge_image(image(6, 0.6), baseline, LIMITS)[0]
    assert found.kind == "signal_drop"
    assert found.measured == pytest.approx(0.4, abs=0.02)  # the heart beats on


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.floats(width=32)))
def test_any_image_is_judged_without_an_exception_and_without_being_changed(image):
    before = image.tobytes()
    image.flags.writeable = False
    baseline = Baseline()
    for _ in range(4):
        found, levels, _ = judge_image(image, baseline, LIMITS)
        if not found:
            baseline.accept(levels)
    if not found:
        ghost_level(image)
    assert image.tobytes() == before
    assert ([f.kind for f in found] == ["not_finite"]) == (not np.isfinite(image).all())
