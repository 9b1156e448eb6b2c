# SPDX-License-Identifier: Apache-2.0
"""The denoise stage with the shipped model: closer to the truth, linear, bounded, and never in place."""

from dataclasses import replace

import numpy as np
import pytest

from appliance.context import Context
from appliance.errors import ModelError, StageError
from appliance.frames import Frame, Position, Scan
from appliance.imaging.remove_noise import MOST_SIGMA
from appliance.mri.phantom import cine_image
from operators.stages.denoise import MOST_PLACES, Settings, make


@pytest.fixture
def context(tmp_path):
    return Context(pipeline="mri-live", data_dir=tmp_path, run_dir=tmp_path)


def scan(shape=(96, 80), axes=("y", "x")) -> Scan:
    return Scan(scan_id="scan-1", modality="MR", axes=axes, shape=shape, dtype="float32", started_ns=0)


def frame(image, position=Position(), **attachments) -> Frame:  # noqa: B008  # frozen
    image = np.array(image, np.float32)
    image.flags.writeable = False
    return Frame(
        scan_id="scan-1", sequence=3, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=1, received_ns=2,
        position=position, attachments=attachments,
    )  # fmt: skip


def begun(context, shape=(96, 80), **settings):
    stage = make(Settings(**settings), context)
    stage.begin(scan(shape))
    return stage


def truth(shape=(96, 80)):
    """Discs of several intensities and sizes, maximum 1000."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for cy, cx, radius, value in (
        (0.5, 0.5, 0.42, 400),
        (0.4, 0.4, 0.15, 1000),
        (0.65, 0.6, 0.1, 700),
        (0.5, 0.7, 0.04, 100),
    ):
        image[np.hypot(y - cy * shape[0], x - cx * shape[1]) < radius * min(shape)] = value
    return image


def noisy(image, sigma, seed=1):
    real, imaginary = np.random.default_rng(seed).normal(0, sigma, (2, *image.shape))
    return np.hypot(image + real, imaginary).astype(np.float32)


def rmse(image, other) -> float:
    return float(np.sqrt(np.mean((image - other) ** 2)))


@pytest.mark.parametrize("shape", [(128, 128), (127, 131)])
@pytest.mark.parametrize(("sigma", "gain"), [(20, 1.7), (50, 2.1), (100, 2.6)])
def test_the_image_comes_closer_to_the_truth(context, shape, sigma, gain):
    """In the body (where truth is), by a stated factor, with the noise level estimated from the image."""
    image = truth(shape)
    given = noisy(image, sigma)
    result = begun(context, shape).frame(frame(given)).array
    assert result.shape == shape and result.dtype == np.float32
    body = image > 0
    assert rmse(given[body], image[body]) > gain * rmse(result[body], image[body])
    assert rmse(given, image) > 2.3 * rmse(result, image)
    assert result.min() >= 0


def test_a_noise_map_is_used_where_the_noise_varies(context):
    image = truth()
    level = np.linspace(10, 150, 96)[:, None] * np.ones((1, 80))
    given = noisy(image, level)
    stage = begun(context)
    with_map = stage.frame(frame(given, noise_map=level.astype(np.float32))).array
    estimated = stage.frame(frame(given)).array
    assert rmse(with_map, image) < 0.5 * rmse(estimated, image) < 0.4 * rmse(given, image)


def test_strength_zero_is_the_identity(context):
    given = frame(noisy(truth(), 50))
    assert begun(context, strength=0).frame(given).array is given.array


def test_strength_is_the_part_that_is_taken_out(context):
    given = frame(noisy(truth(), 50))
    whole, half = (begun(context, strength=s).frame(given).array for s in (1.0, 0.5))
    np.testing.assert_allclose(half, (given.array + whole) / 2, rtol=0, atol=1e-3)  # of 1000: float32 rounding


def test_no_noise_no_change(context):
    given = frame(truth(), noise_map=np.zeros((96, 80), np.float32))
    assert np.array_equal(begun(context).frame(given).array, given.array)


def test_no_pixel_changes_by_more_than_the_noise_could(context):
    level = np.full((96, 80), 30, np.float32)
    given = frame(noisy(truth(), 90), noise_map=level)  # the level is three times too low
    changed = np.abs(begun(context).frame(given).array - given.array)
    assert 60 < changed.max() <= MOST_SIGMA * 30 * (1 + 1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e6], ids=str)
def test_scaling_the_scan_scales_the_result(context, factor):
    given = noisy(truth(), 50)
    reference = begun(context).frame(frame(given)).array
    scaled = begun(context).frame(frame(given * np.float32(factor))).array
    np.testing.assert_allclose(scaled / np.float32(factor), reference, rtol=0, atol=0.01)  # 1e-5 of the maximum


def test_a_brighter_frame_within_a_scan_stays_in_proportion(context):
    stage = begun(context)
    given = noisy(truth(), 50)
    first, fourfold = stage.frame(frame(given)).array, stage.frame(frame(4 * given)).array
    np.testing.assert_allclose(fourfold, 4 * first, rtol=0, atol=0.04)


def test_the_input_is_not_modified_and_the_output_is_frozen(context):
    given = frame(noisy(truth(), 50))
    before = given.array.copy()
    result = begun(context).frame(given)
    assert np.array_equal(given.array, before)
    assert not result.array.flags.writeable and not np.shares_memory(result.array, given.array)
    assert replace(result, array=given.array).__dict__ == given.__dict__  # nothing else of the frame changed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_the_next_frame_is_fine(context, bad):
    stage = begun(context)
    good = noisy(truth(), 50)
    broken = good.copy()
    broken[40, 40] = bad
    # which of the two tells it is the network's: rectifiers can swallow a value that is none
    with pytest.raises((ModelError, StageError), match="values that are not finite; look at"):
        stage.frame(frame(broken))
    assert np.array_equal(stage.frame(frame(good)).array, begun(context).frame(frame(good)).array)


def test_an_image_of_zeros_stays_zero(context):
    assert not begun(context).frame(frame(np.zeros((96, 80)))).array.any()


def test_a_wrong_noise_map(context):
    with pytest.raises(StageError) as caught:
        begun(context).frame(frame(truth(), noise_map=np.zeros((80, 96), np.float32)))
    assert str(caught.value) == ("denoise: noise_map has shape (80, 96), the image (96, 80); correct the stage before")


def test_a_scan_that_is_no_image(context):
    with pytest.raises(StageError) as caught:
        make(Settings(), context).begin(scan((8, 96, 80), ("coil", "ky", "kx")))
    assert str(caught.value) == ("denoise: expected axes ('y', 'x'), got ('coil', 'ky', 'kx'); put reconstruct first")
    assert caught.value.scan_id == "scan-1"


@pytest.mark.parametrize("shape", [(8, 96), (96, 2000)])
def test_sizes_the_model_was_not_made_for(context, shape):
    with pytest.raises(StageError, match="denoise: mr-denoise takes 16 to 1024 pixels a side, got"):
        make(Settings(), context).begin(scan(shape))
    stage = make(Settings(), context)
    stage.begin(scan((None, None)))
    with pytest.raises(StageError, match="denoise: mr-denoise takes 16 to 1024 pixels a side, got"):
        stage.frame(frame(np.ones(shape)))


def test_a_missing_model(context):
    with pytest.raises(
        ModelError, match=r"/pet-denoise\.yaml: no such model card; models in this folder: ct-denoise, mr-denoise"
    ):
        make(Settings(model="pet-denoise"), context)


def test_status_and_provenance(context):
    stage = begun(context, precision="f32")
    stage.frame(frame(noisy(truth(), 50)))
    status = stage.status()
    assert (status["model"], status["backend"], status["precision"], status["degraded"]) == (
        "mr-denoise", "openvino", "f32", "",
    )  # fmt: skip
    assert status["noise_level"] == pytest.approx(50, rel=0.15)
    name, model_digest, engine_digest = stage.model
    assert name == "mr-denoise" and len(model_digest) == len(engine_digest) == 64


def test_a_gpu_site_without_its_gpu_runs_degraded_and_says_so(context):
    alarms = {}
    stage = make(Settings(), replace(context, device="gpu", alarm=alarms.__setitem__))
    if stage.status()["backend"] in ("openvino", "onnxruntime"):
        assert alarms["model mr-denoise"].startswith(f"runs degraded on {stage.status()['backend']} ")
        assert ": tensorrt f32: no usable GPU: " in alarms["model mr-denoise"]
    else:
        assert alarms == {"model mr-denoise": ""}


def test_a_streaming_model_gains_from_the_frames_before(context):
    """A beating heart, each frame with new noise: nearer to the truth than without a past, in the body."""
    stage, errors = begun(context, (256, 256), model="mr-denoise-cine"), []
    for index in range(12):
        image = 1000 * cine_image(index)
        given, body = frame(noisy(image, 100, index)), image > 100
        with_past = stage.frame(given).array
        if index >= 6:
            fresh = begun(context, (256, 256), model="mr-denoise-cine").frame(given).array
            errors.append([rmse(one[body], image[body]) for one in (with_past, fresh)])
    with_past, fresh = np.mean(errors, axis=0)
    assert with_past < 0.75 * fresh  # 2.5 dB


def test_a_streaming_model_sees_at_once_that_something_moved(context):
    """A disc jumps: the first frame after it is as good as one without a past, and nothing of the old place is left."""
    y, x = np.mgrid[:96, :80]
    before = 400.0 * (np.hypot(y - 48, x - 40) < 36) + 600.0 * (np.hypot(y - 40, x - 30) < 8)
    after = np.roll(before, 18, axis=1) * (before > 0) + 400.0 * (before > 0) * (np.roll(before, 18, axis=1) == 0)
    stage = begun(context, model="mr-denoise-cine")
    for seed in range(8):
        stage.frame(frame(noisy(before, 40, seed)))
    given = noisy(after, 40, 99)
    moved, fresh = stage.frame(frame(given)).array, begun(context, model="mr-denoise-cine").frame(frame(given)).array
    body = before > 0
    assert rmse(moved[body], after[body]) < 1.15 * rmse(fresh[body], after[body])
    old_place = (before > 900) & (after < 500)
    assert abs(moved[old_place].mean() - after[old_place].mean()) < 20  # half the noise; the disc was 600 brighter


def test_each_place_is_remembered_on_its_own(context):
    images = truth(), np.ascontiguousarray(truth()[::-1])
    alone, mixed = (
        [begun(context, model="mr-denoise-cine", precision="f32") for _ in images],
        begun(context, model="mr-denoise-cine", precision="f32"),
    )
    for seed in range(3):
        for number, image in enumerate(images):
            given = frame(noisy(image, 50, seed), Position(slice=number))
            expected = alone[number].frame(frame(given.array, Position(slice=0))).array
            assert rmse(mixed.frame(given).array, expected) < 1  # of 1000: the scale is that of another first frame


def test_only_so_many_places_are_remembered(context):
    stage = begun(context, (32, 32), model="mr-denoise-cine")
    given = noisy(truth((32, 32)), 50)
    first = stage.frame(frame(given, Position(slice=0))).array
    for number in range(1, MOST_PLACES + 1):
        stage.frame(frame(given, Position(slice=number)))
    assert np.array_equal(stage.frame(frame(given, Position(slice=0))).array, first)  # forgotten: as at the start
    assert not np.array_equal(stage.frame(frame(given, Position(slice=number))).array, first)
