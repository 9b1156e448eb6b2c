# SPDX-License-Identifier: Apache-2.0
"""Whole pictures: presets, qualities, odd volumes."""

import numpy as np
import pytest
from volumes import SHEARED, centres_mm, picture, volume

from appliance.render.draw import DRAFTS, FINEST, SHARP, draw, prepare
from appliance.render.transfer import colour_table, find_preset, presets, window
from appliance.render.view import read_view


def body(shape=(40, 48, 44)):
    distance = np.linalg.norm(centres_mm(shape, np.eye(4)) - np.array(shape[::-1]) / 2, axis=-1)
    return np.clip(900 - 60 * distance, -1000, 800).astype(np.int16)


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "PT"])
def test_presets_begin_transparent_and_show_what_is_bright(modality):
    for preset in presets(modality):
        assert preset.points[0][4] == 0
        table = colour_table(volume(body(), modality=modality), preset, 1.0)
        assert table.rows[0, 3] == 0 and (table.rows >= 0).all() and (table.rows <= 1).all()
        seen = picture(volume(body(), modality=modality), preset=preset.name, width=64, height=64).pixels
        assert seen.max() > 40 and seen[0, 0].max() == 0


def test_an_unknown_preset_is_the_modalitys_first():
    assert find_preset("CT", "glass").name == "bone"
    assert find_preset("US", "glass").name == "glass"


def test_presets_of_ct_are_in_hounsfield_units_whatever_is_stored():
    hu = body()
    stored = volume(((hu + 1024) / 2).astype(np.int16), slope=2.0, intercept=-1024.0)
    low, high = window(stored, find_preset("CT", "soft tissue"))
    assert (low * 2 - 1024, high * 2 - 1024) == (-160, 240)
    for mode in ("volume", "mip", "slices"):
        one = picture(volume(hu // 2 * 2), mode=mode, width=128, height=128).pixels.astype(int)
        assert np.abs(one - picture(stored, mode=mode, width=128, height=128).pixels).max() <= 2


def test_a_step_of_another_length_is_as_opaque():
    sharp, finest = (picture(volume(body()), quality).pixels.astype(float) for quality in (SHARP, FINEST))
    assert np.abs(sharp - finest).mean() < 2.5


@pytest.mark.parametrize("mode", ["volume", "mip", "slices", "oblique"])
def test_a_draft_covers_the_same_as_the_finest(mode):
    finest = picture(volume(body()), FINEST, mode=mode, width=200, height=120).pixels
    for quality in DRAFTS:
        draft = picture(volume(body()), quality, mode=mode, width=200, height=120)
        assert draft.pixels.shape[:2] == (120 // draft.coarse, 200 // draft.coarse)
        grown = np.kron(draft.pixels, np.ones((draft.coarse,) * 2 + (1,) * (finest.ndim - 2), np.uint8))
        assert np.abs(grown.astype(float) - finest).mean() < 12
        assert np.corrcoef(grown.ravel(), finest.ravel())[0, 1] > 0.93


def test_bands_are_the_whole_picture():
    scene, view = prepare(volume(body(), SHEARED)), read_view({"width": 1024, "height": 512, "preset": "bone"})
    work, n_bands = draw(scene, view, SHARP), 0
    while True:
        try:
            next(work)
            n_bands += 1
        except StopIteration as done:
            banded = done.value.pixels
            break
    assert n_bands >= 16  # another viewer waits for one of them at most
    assert (banded == picture(volume(body(), SHEARED), width=1024, height=512, preset="bone").pixels).all()


@pytest.mark.parametrize("shape", [(1, 30, 40), (1, 1, 1), (2, 2, 2), (1, 2, 300), (40, 1, 5)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_thin_volumes_are_drawn(shape, dtype):
    array = np.full(shape, 250, dtype)
    for mode in ("volume", "mip", "slices"):
        of = volume(array, modality="MR", value_range=(0, 250))
        seen = picture(of, mode=mode, width=200, height=200, rotation=[0.2, 0.1, 0.1, 1])
        assert seen.pixels.max() > 100, mode


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"slope": -1.0}, r"volume: slope -1\.0, intercept 0\.0, value range \(0, 1000\); finite numbers and a slope"),
        ({"intercept": float("nan")}, "intercept nan"),
        ({"value_range": (0.0, float("inf"))}, r"value range \(0\.0, inf\)"),
    ],
)
def test_values_that_mean_nothing_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        prepare(volume(body(), **wrong))


def test_a_flat_volume_is_drawn():
    flat = volume(np.zeros((5, 5, 5), np.uint8), modality="MR", value_range=(0, 0))
    assert picture(flat, mode="slices").pixels.max() == 0


def test_no_affine_makes_a_picture_take_for_ever():
    flat = volume(body(), np.diag([1e-6, 1e3, 1e3, 1]))
    scene = prepare(flat)
    assert scene.step_mm * 2048 >= 1e3 * 40
    picture(flat, width=64, height=64)


def test_the_volume_is_not_changed():
    array = body()
    array.flags.writeable = False
    before = array.copy()
    picture(volume(array), mode="slices")
    assert (array == before).all()
