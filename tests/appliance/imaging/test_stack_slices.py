# SPDX-License-Identifier: Apache-2.0
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.misc import is_dicom
from scipy.spatial.transform import Rotation

from appliance.frames import Frame, Position
from appliance.imaging.stack_slices import SliceStack

CT_HEAD = Path(__file__).parents[3] / "../shared/data/series/ct_head_ge.tar.xz"
MANY = 8 << 20
SHAPE = (9, 11)


def geometry(turn=(0.2, -0.4, 1.0), tilt=0.0, pixel=(0.7, 0.5)):
    """Axes of a stack: steps of row, column and slice; the latter leans by `tilt` mm a mm along the columns."""
    axes = Rotation.from_rotvec(turn).as_matrix() * np.array([*pixel, 1.0])
    axes[:, 2] += axes[:, 1] / np.linalg.norm(axes[:, 1]) * tilt
    return axes


def field(points):
    """Linear in space: interpolation between slices is exact."""
    return np.tensordot(np.array([3.0, -2.0, 5.0]), points, 1) + 40


def a_slice(axes, at_mm, origin=(10.0, -20.0, 30.0), array=None, position=None):
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = origin + axes[:, 2] * at_mm
    y, x = np.indices(SHAPE)
    points = affine[:3, :3] @ np.stack([x.ravel(), y.ravel(), 0 * x.ravel()]) + affine[:3, 3:]
    image = field(points).reshape(SHAPE) if array is None else array
    return Frame(
        scan_id="s", sequence=0, array=np.asarray(image, np.float32), axes=("y", "x"), affine=affine,
        acquired_ns=0, received_ns=0, position=position or Position(),
    )  # fmt: skip


def values_are_where_they_were(state, atol):
    """Every voxel, taken to LPS by the affine, has the field's value there."""
    z, y, x = np.indices(state.array.shape).reshape(3, -1)
    points = state.affine[:3, :3] @ np.stack([x, y, z]) + state.affine[:3, 3:]
    measured = state.array.ravel() > -32768
    found = state.array.ravel() * state.slope + state.intercept
    np.testing.assert_allclose(found[measured], field(points)[measured], atol=atol)
    return measured.mean()


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.sampled_from([0.0, 0.334, -0.2]),
    st.lists(st.integers(1, 40), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_each_voxel_lies_where_it_was_measured_for_any_steps_tilt_and_order(turn, tilt, steps, random):
    axes, at_mm = geometry(turn, tilt), np.cumsum([0, *steps]) * 0.25
    stack, order = SliceStack(MANY, hounsfield=True), list(at_mm)
    random.shuffle(order)
    for each in order:
        assert stack.add(a_slice(axes, each)) == ""
    state = stack.assembled(complete=True)
    assert values_are_where_they_were(state, atol=1.01) == pytest.approx(state.filled)
    ends = np.array([[0, 0, 0, 1], [0, 0, len(state.array) - 1, 1]]) @ state.affine.T
    np.testing.assert_allclose(ends[:, :3], np.array([10.0, -20, 30]) + np.outer(at_mm[[0, -1]], axes[:, 2]), atol=1e-9)
    even = len(set(steps)) == 1
    assert (len(state.array) == len(at_mm)) or not even
    assert (state.remarks == ()) == even


def test_even_slices_are_not_touched():
    rng, stack = np.random.default_rng(0), SliceStack(MANY, hounsfield=True)
    images = rng.integers(-1024, 3000, (5, *SHAPE))
    for n in (3, 0, 4, 1, 2):
        stack.add(a_slice(geometry(tilt=0.3), 2.5 * n, array=images[n]))
    state = stack.assembled(complete=True)
    np.testing.assert_array_equal(state.array, images)
    assert (state.slope, state.intercept, state.filled) == (1, 0, 1)


def test_a_hole_is_not_bridged_and_uneven_steps_are_said():
    stack = SliceStack(MANY, hounsfield=True)
    for at_mm in (0, 2, 4, 30, 32):
        stack.add(a_slice(geometry(), at_mm))
    state = stack.assembled(complete=True)
    assert state.remarks == ("slices are 2.0 to 26.0 mm apart: what lies between is interpolated",)
    assert state.filled < 0.4 and values_are_where_they_were(state, 1.01) == pytest.approx(state.filled)
    assert not (state.array[5:12] > -32768).any()


def test_of_a_cine_the_newest_repetition_counts():
    stack = SliceStack(MANY, hounsfield=False)
    for repetition in range(3):
        for n in range(4):
            stack.add(a_slice(geometry(), 5 * n, array=np.full(SHAPE, 10 * n + repetition + 1)))
    state = stack.assembled(complete=False)
    grey = state.array * state.slope
    np.testing.assert_allclose(grey[:, 0, 0], [3, 13, 23, 33], rtol=1e-3)
    stack.add(a_slice(geometry(), 5, array=np.full(SHAPE, 99)))
    newer = stack.assembled(complete=False)
    assert newer.array[1, 0, 0] * newer.slope == pytest.approx(99, rel=1e-3)
    assert state.array[1, 0, 0] * state.slope == pytest.approx(13, rel=1e-3), "what was published does not change"


def test_a_slab_is_its_slices():
    slab = a_slice(geometry(), 0, array=np.random.default_rng(0).integers(0, 99, (4, *SHAPE)))
    stack = SliceStack(MANY, hounsfield=True)
    assert stack.add(slab) == ""
    state = stack.assembled(complete=True)
    np.testing.assert_array_equal(state.array, slab.array)
    np.testing.assert_allclose(state.affine, slab.affine, atol=1e-9)


def test_what_does_not_belong_is_left_out_with_its_reason():
    stack, axes = SliceStack(20 * 99, hounsfield=True), geometry()
    assert stack.add(a_slice(axes, 0)) == ""
    other = a_slice(geometry(turn=(0, 0, 0)), 3)
    assert stack.add(other) == "it is not parallel to the first slice, or of another size"
    assert "another size" in stack.add(a_slice(axes, 3, array=np.zeros((4, 4))))
    assert (
        stack.add(a_slice(axes, 3, position=Position(contrast=1))) == "it is of another contrast than the first slice"
    )
    assert stack.add(a_slice(axes * np.nan, 3)) == "it does not say where it lies"
    assert stack.add(a_slice(axes, 3)) == ""
    assert stack.add(a_slice(axes, 6, origin=(14.0, -20, 30))).startswith("it lies ")
    reasons = [stack.add(a_slice(axes, 3 * n)) for n in range(2, 30)]
    assert reasons[-1] == "the volume is full, at 20 slices" and reasons.count("") == 18


def test_pixels_that_are_no_numbers_or_too_bright():
    stack = SliceStack(MANY, hounsfield=True)
    image = np.zeros(SHAPE)
    image[0, :4] = (np.nan, np.inf, -np.inf, -32_000)
    stack.add(a_slice(geometry(), 0, array=image))
    state = stack.assembled(complete=True)
    assert state.array[0, 0, :4].tolist() == [-32768, 32767, -32768, -32000]
    assert state.remarks == ()
    image[1, 1] = 50_000
    stack.add(a_slice(geometry(), 3, array=image))
    assert stack.assembled(complete=True).remarks == ("some pixels are brighter than the volume can hold",)


def test_a_real_head_with_tilt_and_uneven_steps(tmp_path):
    if not CT_HEAD.exists():
        pytest.skip(f"{CT_HEAD} is absent")
    subprocess.run(["tar", "-xJf", CT_HEAD, "-C", tmp_path], check=True)
    slices = [dcmread(path) for path in tmp_path.rglob("*") if path.is_file() and is_dicom(path)]
    stack = SliceStack(64 << 20, hounsfield=True)
    for ds in slices:
        affine = np.eye(4)
        row, column = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
        dy, dx = map(float, ds.PixelSpacing)
        affine[:3, 0], affine[:3, 1] = row * dx, column * dy
        affine[:3, 3] = ds.ImagePositionPatient
        frame = Frame(
            scan_id="s", sequence=0, axes=("y", "x"), affine=affine, acquired_ns=0, received_ns=0,
            array=(ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)).astype(np.float32),
        )  # fmt: skip
        assert stack.add(frame) == ""
    state = stack.assembled(complete=True)
    lean = state.affine[:3, 2] / np.linalg.norm(state.affine[:3, 2])
    normal = np.cross(state.affine[:3, 0], state.affine[:3, 1])
    angle = np.degrees(np.arccos(abs(lean @ normal) / np.linalg.norm(normal)))
    assert angle == pytest.approx(abs(float(slices[0].GantryDetectorTilt)), abs=0.5)
    assert "mm apart: what lies between is interpolated" in state.remarks[0] and state.filled == 1
    for ds in slices:  # each measured slice is found again where it is said to lie
        z = (np.linalg.inv(state.affine) @ [*map(float, ds.ImagePositionPatient), 1])[:3]
        assert np.abs(z[:2]).max() < 0.05
        near = state.array[round(z[2])].astype(float)
        own = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
        assert np.corrcoef(near.ravel(), own.ravel())[0, 1] > 0.97
