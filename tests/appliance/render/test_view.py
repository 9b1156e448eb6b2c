# SPDX-License-Identifier: Apache-2.0
"""Views are checked as a stranger's; a place in LPS appears where it must, never mirrored."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from volumes import SHEARED, marked, picture, volume

from appliance.render.draw import DRAFTS, FINEST, SHARP
from appliance.render.view import LARGEST, SMALLEST, UNIT, View, panes, read_view

GRIDS = {
    "cubes": np.diag([1.0, 1, 1, 1]),
    "sheared": SHEARED,
    "flipped": np.array([[-0.9, 0, 0, 40.0], [0, 0, 1.2, -20], [0, -0.8, 0, 9], [0, 0, 0, 1]]),
}
TURNS = [(0, 0, 0, 1), (0.3, -0.2, 0.5, 0.7), (0, 0.7071, 0, 0.7071)]


@pytest.mark.parametrize("mode", ["volume", "mip", "slices", "oblique"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_marker_appears_where_the_header_says(mode, grid):
    affine = GRIDS[grid]
    at = affine[:3, :3] @ [30.0, 15.0, 22.0] + affine[:3, 3]
    of = marked(affine, at)
    for turn, quality in ((TURNS[0], SHARP), (TURNS[1], DRAFTS[1]), (TURNS[2], FINEST)):
        seen = picture(
            of,
            quality,
            mode=mode,
            preset="bone",
            rotation=list(turn),
            width=400,
            height=400,
            at_mm=at.tolist(),
            zoom=1.3,
        )
        for pane in seen.panes:
            said = pane.describe("CT")
            left, top, width, height = (n // seen.coarse for n in said["box"])
            part = seen.pixels[top : top + height, left : left + width].astype(float)
            light = part if part.ndim == 2 else part.mean(-1)
            light = np.where(light > 0.4 * light.max(), light, 0)
            assert light.max() > 60, pane.name
            row, column = (np.indices(light.shape) * light).sum((1, 2)) / light.sum()
            row, column = ((i + 0.5) * seen.coarse - 0.5 for i in (row, column))
            offset = at - np.array(said["origin_mm"])
            pixel2 = pane.pixel_mm**2
            expected = np.array([offset @ said["down_mm"], offset @ said["right_mm"]]) / pixel2
            assert np.abs(expected - (row, column)).max() * pane.pixel_mm < 1.2, (pane.name, turn)  # mm: a voxel


@pytest.mark.parametrize("mode", ["volume", "mip"])
def test_patient_left_is_right_on_the_picture_from_the_front(mode):
    seen = picture(marked(np.eye(4), (45.0, 23.5, 30.0)), mode=mode, preset="bone")  # left of and above the middle
    row, column = np.argwhere(seen.pixels.reshape(*seen.pixels.shape[:2], -1).max(-1) > 60).mean(0)
    assert column > 300 and row < 230
    assert seen.panes[0].describe("CT")["sides"] == ["R", "L", "H", "F"]


def test_slices_are_seen_as_radiologists_do():
    of = marked(np.eye(4), (45.0, 40.0, 30.0))
    seen = picture(of, mode="slices", preset="bone", at_mm=[45, 40, 30])
    sides = {pane.name: pane.describe("CT")["sides"] for pane in seen.panes}
    assert sides["axial"] == ["R", "L", "A", "P"]
    assert sides["coronal"] == ["R", "L", "H", "F"]
    assert sides["sagittal"] == ["A", "P", "H", "F"]
    for pane in seen.panes[:3]:
        part = seen.pixels[pane.top : pane.top + pane.height, pane.left : pane.left + pane.width, 0]
        row, column = np.argwhere(part > 200).mean(0)
        assert column > pane.width / 2 + 10  # left, left, posterior
        assert (row > pane.height / 2) == (pane.name == "axial")  # posterior is down, head is up


def test_from_the_back_left_is_on_the_left():
    half_turn = [0, 0, 1, 0]  # about the patient's long axis
    seen = picture(marked(np.eye(4), (45.0, 23.5, 20.0)), mode="volume", preset="bone", rotation=half_turn)
    assert np.argwhere(seen.pixels[..., 0] > 60).mean(0)[1] < 220
    assert seen.panes[0].describe("CT")["sides"] == ["L", "R", "H", "F"]


def test_how_the_voxels_are_stored_does_not_matter():
    """The same body with its axes in another order and direction gives the same picture."""
    random = np.random.default_rng(0)
    array = np.clip(random.normal(size=(30, 36, 40)).cumsum(0).cumsum(1).cumsum(2), -200, 900).astype(np.int16)
    flipped = np.ascontiguousarray(array.transpose(2, 0, 1)[:, ::-1, ::-1])
    # new (x, y, z) index -> old (x, y, z): x' = n_y-1-y, y' = n_z-1-z, z' = x
    to_old = np.array([[0, 0, 1, 0], [-1, 0, 0, 35], [0, -1, 0, 29], [0, 0, 0, 1.0]])
    for mode in ("volume", "mip", "slices"):
        said = {"mode": mode, "preset": "bone", "rotation": [0.3, 0.1, -0.4, 0.8]}
        one, other = picture(volume(array, SHEARED), **said), picture(volume(flipped, SHEARED @ to_old), **said)
        assert one.pixels.max() > 50
        assert np.abs(one.pixels.astype(int) - other.pixels).max() <= 3, mode  # float32 positions


def test_letters_are_of_the_two_or_three_nearest_axes_and_a_tracker_has_its_own():
    view = read_view({"rotation": [0.0, 0.0, 0.3827, 0.9239]})  # 45 degrees about the long axis
    (pane,) = panes(view, np.eye(4), (10, 10, 10))
    assert [sorted(side) for side in pane.describe("CT")["sides"]] == [["A", "R"], ["L", "P"], ["H"], ["F"]]
    (pane,) = panes(View(), np.eye(4), (10, 10, 10))
    assert pane.describe("US")["sides"] == ["−X", "+X", "+Z", "−Z"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"mode": "film"}, "view: mode 'film'; one of volume, mip, slices, oblique"),
        ({"rotation": [0, 0, 0, 0]}, "view: rotation of length 0, zoom 1; both must be more than 0"),
        ({"zoom": -1}, "view: rotation of length 1, zoom -1; both must be more than 0"),
        ({"rotation": [0, 0, float("nan"), 1]}, "view: rotation [0, 0, nan, 1]; 4 numbers up to a million"),
        ({"pan_mm": [1e300, 0]}, "view: pan_mm [1e+300, 0]; 2 numbers up to a million are expected"),
        ({"at_mm": "here"}, "view: at_mm here; 3 numbers up to a million are expected"),
        ({"width": True}, "view: size [True, 512]; 2 numbers up to a million are expected"),
        ({"zoom": float("inf")}, "view: zoom [inf]; 1 numbers up to a million are expected"),
    ],
)
def test_what_is_no_view_is_refused_with_words(said, words):
    with pytest.raises(ValueError) as refused:
        read_view(said)
    assert words in str(refused.value)


def test_sizes_are_brought_within_bounds():
    assert (read_view({"width": 1e6, "height": -4}).width, read_view({"height": -4}).height) == (LARGEST, SMALLEST)
    assert read_view({"width": 517}).width % UNIT == 0


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5),
)
KEYS = ["mode", "preset", "rotation", "zoom", "pan_mm", "at_mm", "width", "height", "dragging", "other"]


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_json_is_a_view_or_a_value_error(said):
    try:
        view = read_view(json.loads(json.dumps(said)))
    except ValueError:
        return
    for pane in panes(view, SHEARED, (5, 6, 7)):
        rays = pane.rays(SHEARED, 0.5, 2)
        assert np.isfinite(rays).all() and pane.width >= SMALLEST // 2
