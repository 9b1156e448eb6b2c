# SPDX-License-Identifier: Apache-2.0
"""What mr-denoise-cine remembers, in the graph that is shipped: a mean of what did not change. No torch here."""

from functools import cache

import numpy as np
import pytest

from appliance.inference.card import read_model, shipped_models
from appliance.inference.onnxruntime import OnnxRuntime

SIZE, LEVEL = 96, 0.05
MOST_FRAMES = 16  # as training/add_up.py says


@cache
def session():
    model = read_model("mr-denoise-cine", shipped_models())
    return OnnxRuntime().load(model.onnx, model.card.signature, "f32")


def scene(seed):
    """Patches of even tissue, 0.3 … 0.9."""
    return np.kron(np.random.default_rng(seed).uniform(0.3, 0.9, (8, 8)), np.ones((12, 12))).astype(np.float32)


def frames(truth, n, seed=0, level=LEVEL):
    rng = np.random.default_rng(seed)
    return [truth + level * rng.standard_normal(truth.shape, np.float32) for _ in range(n)]


def play(images, level=LEVEL):
    """Return (cleaned, mean, number of frames in it) of each frame."""
    memory, out = np.zeros((1, 2, SIZE, SIZE), np.float32), []
    for image in images:
        noise, memory = session().run(np.stack([image, np.full_like(image, level)])[None], memory)
        out.append((image - noise[0, 0], memory[0, 0], memory[0, 1] * MOST_FRAMES))
    return out


def test_where_nothing_changes_frames_are_averaged():
    given = frames(scene(1), 8)
    _, mean, count = play(given)[-1]
    undisturbed = count > 7.999
    assert undisturbed.mean() > 0.1  # elsewhere noise looked a little like a change, once in eight frames
    np.testing.assert_allclose(mean[undisturbed], np.mean(given, axis=0)[undisturbed], atol=1e-5)
    # on the whole: the variance of eight frames' mean, and a quarter more for what was let go
    assert np.var(mean - scene(1)) < 1.25 * LEVEL**2 / 8


def test_only_so_many_frames_count():
    count = play(frames(scene(1), 40))[-1][2]
    assert count.max() == MOST_FRAMES - 1 and np.median(count) == MOST_FRAMES - 1


def test_another_scene_starts_afresh_exactly():
    """Every tissue differs by seven times the noise: nothing of the old scene may be left, not even a little."""
    old = scene(1)
    new = np.where(old > 0.6, old - 0.35, old + 0.35).astype(np.float32)
    given = frames(old, 10) + frames(new, 1, seed=3)
    cleaned, mean, count = play(given)[-1]
    fresh, *_ = play(given[-1:])[0]
    assert np.all(count == 1)
    np.testing.assert_allclose(mean, given[-1], atol=1e-6)
    np.testing.assert_allclose(cleaned, fresh, atol=1e-5)


@pytest.mark.parametrize(("size_px", "contrast_to_noise"), [(4, 4), (6, 2), (12, 1.5)])
def test_a_small_faint_thing_that_moves_is_not_smeared(size_px, contrast_to_noise):
    """It is gone from one frame to the next: what is left of it where it was, over 20 draws, is less than a sixth."""
    where = np.s_[36 : 36 + size_px, 36 : 36 + size_px]
    left = []
    for seed in range(20):
        truth = np.full((SIZE, SIZE), 0.5, np.float32)
        thing = truth.copy()
        thing[where] += contrast_to_noise * LEVEL
        given = frames(thing, 8, seed) + frames(truth, 1, seed + 100)
        mean = play(given)[-1][1]
        left.append((mean - given[-1])[where].mean())  # the frame's own noise is not what is looked for
    assert abs(np.mean(left)) < contrast_to_noise * LEVEL / 6


def test_without_noise_nothing_is_remembered_that_differs():
    given = [scene(1), scene(1), scene(2)]
    _, mean, _ = play(given, level=0.0)[-1]
    np.testing.assert_allclose(mean, scene(2), atol=1e-6)
