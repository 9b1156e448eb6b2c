# SPDX-License-Identifier: Apache-2.0
"""What fault detection is measured with: planted faults are what they say, and clean scenes are clean."""

import numpy as np
import pytest

from appliance.mri.fourier import to_image
from training.fault_scenes import features_of, held_out_scene, placed, trained_scene
from training.simulate_faults import PATIENT, RECEIVER, acquire
from training.validate_faults import OneClass, auroc

SCENE = held_out_scene(5, 1)


def planted(fault, seed=0):
    return PATIENT[fault](SCENE, np.random.default_rng(seed), SCENE.kspace)


def test_a_clean_frame_is_the_scene_and_noise_of_its_level():
    acquired = acquire(SCENE, np.random.default_rng(0))
    noise = acquired.kspace - SCENE.kspace[:, SCENE.ky]
    assert np.std(noise.view(np.float32)) == pytest.approx(SCENE.noise_std, rel=0.01)
    np.testing.assert_array_equal(acquired.ky, SCENE.ky)
    body = SCENE.truth > 0.3
    assert np.corrcoef(acquired.image[body], SCENE.truth[body])[0, 1] > 0.9


def test_ghosting_turns_every_second_acquired_line_and_no_other():
    turned = np.angle((planted("ghosting") * SCENE.kspace.conj()).sum(axis=(0, 2)))
    phase = turned[SCENE.ky[1]]
    assert 0.2 <= abs(phase) <= 0.9
    np.testing.assert_allclose(turned[SCENE.ky[1::2]], phase, atol=1e-3)
    np.testing.assert_allclose(turned[SCENE.ky[::2]], 0, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_motion_changes_some_lines_by_more_than_their_noise(seed):
    moved = planted("motion", seed) - SCENE.kspace
    changed = np.linalg.norm(moved, axis=(0, 2))
    assert changed.max() > 2 * SCENE.noise_std * np.sqrt(2 * moved.shape[0] * moved.shape[2])
    assert changed.min() < 0.05 * changed.max()


def test_a_body_that_folds_over_lies_at_both_ends_of_the_view():
    image = np.linalg.norm(to_image(planted("wrap")), axis=0)
    tissue = image[len(image) // 2].max()
    assert min(image[0].max(), image[-1].max()) > 0.3 * tissue
    clean = np.linalg.norm(to_image(SCENE.kspace), axis=0)
    assert min(clean[0].max(), clean[-1].max()) < 0.1 * tissue
    seen = acquire(SCENE, np.random.default_rng(0), "wrap").image  # calibrated on that body, so no end is dark
    assert min(seen[:3].max(), seen[-3:].max()) > 0.3 * np.percentile(seen, 99)


@pytest.mark.parametrize("fault", RECEIVER)
def test_receiver_faults_leave_what_they_were_given(fault):
    lines = SCENE.kspace[:, SCENE.ky].copy()
    lines.flags.writeable = False
    changed = RECEIVER[fault](SCENE, np.random.default_rng(1), lines)
    assert changed.shape == lines.shape and changed.dtype == np.complex64
    assert not np.array_equal(changed, lines)


def test_the_frames_of_one_patient_lie_alike_but_for_breathing():
    image = np.zeros((64, 64), np.float32)
    image[20:40, 24:40] = 1
    still, again, down = (placed(np.random.default_rng(3), image, (96, 96), by) for by in (0, 0, 5))
    np.testing.assert_array_equal(still, again)
    np.testing.assert_allclose(np.roll(still, 5, axis=0), down, atol=1e-4)


def test_the_area_counts_ties_half():
    assert auroc([0, 1], [2, 3]) == 1
    assert auroc([2, 3], [0, 1]) == 0
    assert auroc([1, 1], [1, 1]) == 0.5


def test_the_peer_sees_an_image_unlike_those_it_was_fitted_to():
    frames = [features_of(acquire(trained_scene(3, i), np.random.default_rng(i))) for i in range(12)]
    peer = OneClass(frames)
    assert peer.score(np.zeros_like(frames[0])) > max(peer.score(frame) for frame in frames)
