# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from appliance.frames import Frame, Tracking
from appliance.imaging.metaimage import read_metaimage
from appliance.ultrasound import phantom
from appliance.ultrasound.compound import Compound
from appliance.ultrasound.freehand import Freehand
from appliance.ultrasound.place_image import calibration
from tests.appliance.ultrasound.test_match_poses import CALIBRATION

TRACKED = Path(__file__).parents[3] / "../shared/data/us_tracked/TestImages"
METHODS = ["linear", "nearest"]
MANY = 8 << 20


def points(shape, affine):
    """(3, y, x): where each pixel lies."""
    y, x = np.indices(shape)
    return np.einsum("ij,jyx->iyx", affine[:3, [0, 1, 3]], np.stack([x, y, np.ones(shape)]).astype(float))


def plain(images, affines, spacing, low, shape, method):
    """Scatter-add with numpy: the oracle."""
    total, weight = np.zeros(shape), np.zeros(shape)
    for image, affine in zip(images, affines, strict=True):
        at = (points(image.shape, affine).reshape(3, -1) / spacing - low[:, None])[::-1]
        grey = np.clip(np.floor(image.ravel() + 0.5), 0, 255)
        if method == "nearest":
            corners = [(np.floor(at + 0.5).astype(int), np.ones(at.shape[1]))]
        else:
            base = np.floor(at).astype(int)
            share = np.floor((at - base) * 8 + 0.5) / 8
            corners = [
                (base + np.array(d)[:, None], np.prod(np.where(np.array(d)[:, None], share, 1 - share), axis=0))
                for d in np.ndindex(2, 2, 2)
            ]
        for index, w in corners:
            np.add.at(total, tuple(index), grey * w)
            np.add.at(weight, tuple(index), w)
    return np.where(weight > 0, np.floor(total / np.maximum(weight, 1e-9) + 0.5), 0), weight > 0


def is_decided(image, affine, spacing, method):
    """Whether no pixel lies just between two voxels, or two eighths, where the last bit decides which it is in."""
    at = points(image.shape, affine) / spacing * (1 if method == "nearest" else 8) + 0.5
    return np.abs(at - np.round(at)).min() > 1e-9


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(-2, 2)] * 3), st.tuples(*[st.floats(-200, 200)] * 3), st.integers(0, 2**32 - 1))
def test_it_is_the_weighted_mean_of_what_came_into_each_voxel(method, turn, place, seed):
    rng = np.random.default_rng(seed)
    affine = np.diag([0.31, 0.22, 1, 1])
    affine[:3, :3] = Rotation.from_rotvec(turn).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = place
    images = rng.uniform(-20, 280, (3, 13, 17)).astype(np.float32)
    affines = [affine.copy() for _ in images]
    for n, each in enumerate(affines):
        each[:3, 3] += rng.uniform(-2, 2, 3) * n
    assume(all(is_decided(image, each, 0.5, method) for image, each in zip(images, affines, strict=True)))
    compound = Compound(0.5, MANY, method)
    assert all(compound.add(image, each) for image, each in zip(images, affines, strict=True))
    found, filled = compound.average()
    low = np.round(compound.affine[:3, 3] / 0.5)
    expected, measured = plain(images, affines, 0.5, low, found.shape, method)
    assert filled == measured.mean()
    np.testing.assert_allclose(found, expected, atol=1)  # a half is rounded up here, and down where it is 0.49999…
    assert np.mean(found == expected) > 0.999


@pytest.mark.parametrize("method", METHODS)
def test_a_sweep_over_a_known_body_shows_that_body(method):
    compound = Compound(0.5, MANY, method)
    for n in range(60):
        shown = phantom.picture(n / 15)
        affine = phantom.probe_to_reference(n / 15) @ phantom.IMAGE_TO_PROBE
        assert compound.add(shown.array.astype(np.float32), affine)
    volume, filled = compound.average()
    z, y, x = np.nonzero(volume)
    at = compound.affine[:3, :3] @ np.stack([x, y, z]) + compound.affine[:3, 3:]
    truth = phantom.tissue(at)
    agreement = np.corrcoef(volume[z, y, x], truth)[0, 1]
    assert agreement > 0.85, "speckle and all; its grains are as large as a voxel"
    smooth = phantom.tissue(at, speckle=False)
    for level in (20.0, 60.0, 150.0):
        inside = smooth == level
        assert inside.sum() > 500
        assert volume[z, y, x][inside].mean() == pytest.approx(truth[inside].mean(), abs=4)
    aside = np.roll(at, 1, axis=0)
    assert np.corrcoef(volume[z, y, x], phantom.tissue(aside))[0, 1] < 0.5, "the oracle tells other places apart"
    assert filled > 0.15


@pytest.mark.parametrize(
    ("method", "correlation", "mean_difference"), [("linear", 0.998, 2.5), ("nearest", 0.995, 4.5)]
)
def test_it_agrees_with_the_reconstruction_of_plus(method, correlation, mean_difference):
    """PLUS: linear, mean, sticks of 9 fill holes. Its numbers are truncated to bytes in between, ours are not."""
    if not TRACKED.exists():
        pytest.skip(f"{TRACKED} is absent")
    sweep = read_metaimage((TRACKED / "SpinePhantomFreehand.igs.mha").read_bytes())
    theirs = read_metaimage((TRACKED / "SpinePhantomFreehandReconstructed.mha").read_bytes())
    to_probe = calibration([float(number) for number in CALIBRATION.split()])
    compound = Compound(0.5, MANY, method, anchor_mm=theirs.offset_mm)
    for n, image in enumerate(sweep.array):
        to_reference = np.linalg.inv(sweep.transform(n, "ReferenceToTracker")) @ sweep.transform(n, "ProbeToTracker")
        compound.add(image.astype(np.float32), to_reference @ to_probe)
    ours, _ = compound.average()
    x, y, z = np.round((np.array(theirs.offset_mm) - compound.affine[:3, 3]) / 0.5).astype(int)
    part = ours[z : z + theirs.array.shape[0], y : y + theirs.array.shape[1], x : x + theirs.array.shape[2]]
    both = (part > 0) & (theirs.array > 0)
    assert both.sum() > 150_000
    a, b = part[both].astype(float), theirs.array[both].astype(float)
    assert np.corrcoef(a, b)[0, 1] > correlation
    assert np.abs(a - b).mean() < mean_difference


def test_pixels_that_are_no_numbers_stay_out_and_others_are_clipped():
    compound = Compound(1.0, MANY, "nearest")
    image = np.array([[np.nan, 300.0, -5.0, 100.4, np.inf]], np.float32)
    compound.add(image, np.eye(4))
    volume, filled = compound.average()
    low = np.round(compound.affine[:3, 3]).astype(int)
    row = volume[-low[2], -low[1], -low[0] : 5 - low[0]]
    assert row.tolist() == [0, 255, 0, 100, 0] and filled * volume.size == 3


def test_a_probe_that_stays_shows_what_it_sees_now_and_no_number_overflows():
    compound = Compound(1.0, MANY, "nearest")
    for grey in [255] * 40 + [10] * 200:
        compound.add(np.full((40, 40), grey, np.float32), np.diag([0.01, 0.01, 1, 1]))
    volume, _ = compound.average()
    assert volume.max() == 10


def test_it_grows_with_the_sweep_and_keeps_what_it_has():
    rng, compound, at_once = np.random.default_rng(0), Compound(0.5, MANY), Compound(0.5, MANY)
    image = rng.uniform(0, 255, (30, 40)).astype(np.float32)
    affines = [np.eye(4) for _ in range(12)]
    for n, affine in enumerate(affines):
        affine[:3, 3] = (2.0 * (-1) ** n * n, n, -3.0 * n)
        assert compound.add(image, affine)
    for affine in (affines[-1], affines[-2], *affines[:-2]):
        at_once.add(image, affine)
    a, b = compound.average()[0], at_once.average()[0]
    assert a.sum() == b.sum() > 0 and np.count_nonzero(a) == np.count_nonzero(b)


def test_it_does_not_grow_beyond_its_limit():
    compound = Compound(0.5, 60_000)
    image = np.full((40, 40), 50, np.float32)
    assert compound.add(image, np.eye(4))
    far = np.eye(4)
    far[:3, 3] = 1e6
    near = np.eye(4)
    near[:3, 3] = (0, 0, 1e3)
    shape = compound.shape
    assert not compound.add(image, far) and not compound.add(image, near)
    assert compound.shape == shape and np.prod(shape) <= 60_000
    assert not Compound(0.5, 100).add(image, np.eye(4)), "not even one picture fits"


def test_holes_are_filled_between_values_and_nothing_grows():
    compound = Compound(1.0, MANY, "nearest")
    image = np.full((21, 21), np.nan, np.float32)
    image[:, 4], image[:, 8] = 40, 80
    image[3, 18] = 200
    compound.add(image, np.eye(4))
    volume, _ = compound.average()
    filled, part = compound.fill_holes(volume, 4)
    low = np.round(compound.affine[:3, 3]).astype(int)
    plane = filled[-low[2], -low[1] : 21 - low[1], -low[0] : 21 - low[0]]
    assert plane[10, 3:10].tolist() == [0, 40, 50, 60, 70, 80, 0]
    assert plane[3, 18] == 200 and not plane[:, 9:18].any() and not plane[:, 19:].any()
    assert part * filled.size == pytest.approx(np.count_nonzero(filled) - np.count_nonzero(volume))
    assert not np.array_equal(volume, filled), "a copy"
    np.testing.assert_array_equal(compound.fill_holes(volume, 1)[0], volume)


def frame(array, tracking, affine=None):
    affine = np.eye(4) if affine is None else affine
    return Frame(
        scan_id="s", sequence=0, array=array, axes=("y", "x"), affine=affine, acquired_ns=0, received_ns=0,
        tracking=tracking,
    )  # fmt: skip


def test_a_frame_without_a_place_never_goes_in():
    freehand = Freehand(Compound(1.0, MANY))
    image = np.full((5, 5), 100, np.float32)
    for tracking in (None, Tracking(None, "not seen")):
        assert freehand.add(frame(image, tracking)) == "without a place"
    assert freehand.assembled(complete=True) is None
    assert freehand.add(frame(image, Tracking(np.eye(4)))) == ""
    assert freehand.assembled(complete=False).array.max() == 100


def test_only_the_part_of_the_picture_that_is_asked_for_goes_in():
    whole, part = (Freehand(Compound(1.0, MANY, "nearest"), clip_px=clip) for clip in ((), (3, 2, 4, 5)))
    image = np.random.default_rng(0).uniform(1, 255, (12, 10)).astype(np.float32)
    image.flags.writeable = False
    masked = np.full_like(image, np.nan)
    masked[2:7, 3:7] = image[2:7, 3:7]
    affine = np.diag([1.5, 0.5, 1, 1])
    affine[:3, 3] = (4, -7, 9)
    whole.add(frame(masked, Tracking(np.eye(4)), affine))
    part.add(frame(image, Tracking(np.eye(4)), affine))
    a, b = whole.assembled(complete=False), part.assembled(complete=False)
    for state in (a, b):
        assert np.count_nonzero(state.array) > 10
    where = [np.argwhere(s.array)[:, ::-1] @ s.affine[:3, :3].T + s.affine[:3, 3] for s in (a, b)]
    np.testing.assert_array_equal(*where)
    np.testing.assert_array_equal(a.array[a.array > 0], b.array[b.array > 0])


def test_brighter_pictures_have_their_slope():
    freehand = Freehand(Compound(1.0, MANY, "nearest"))
    freehand.add(frame(np.array([[0, 1000.0], [500, 4000]], np.float32), Tracking(np.eye(4))))
    state = freehand.assembled(complete=False)
    assert state.slope == 16 and state.remarks == ()
    np.testing.assert_allclose(np.unique(state.array) * state.slope, [0, 500, 1000, 4000], atol=8)
    freehand.add(frame(np.full((2, 2), 9000, np.float32), Tracking(np.eye(4))))
    assert freehand.assembled(complete=False).remarks == ("some pixels are brighter than the volume can hold",)


def test_a_black_picture_and_an_overshoot_decide_no_slope():
    freehand = Freehand(Compound(1.0, MANY, "nearest"))
    for brightest in (0, 268, 255):
        freehand.add(frame(np.full((2, 2), brightest, np.float32), Tracking(np.eye(4))))
    state = freehand.assembled(complete=False)
    assert state.slope == 1 and state.remarks == ()
