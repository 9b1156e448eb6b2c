# SPDX-License-Identifier: Apache-2.0
"""The denoise stage on CT in Hounsfield units and on ultrasound displays: range, bounds, and models of another kind."""

import re
import shutil

import numpy as np
import pytest

from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Frame, Scan
from appliance.imaging.remove_noise import MOST_SIGMA
from appliance.inference.card import shipped_models
from operators.stages.denoise import Settings, make
from training.low_dose_ct import scan_low_dose
from training.parallel_beam import beam_for
from training.validate_us import PEERS, needle_display, needle_profile, psnr_db

LEVEL_HU = 20.0


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A site whose models are tried at a small size: that of a busy machine takes longer than a stage waits."""
    folder = tmp_path_factory.mktemp("site")
    models = shutil.copytree(shipped_models(), folder / "models")
    for card in models.glob("*.yaml"):
        card.write_text(re.sub("typical_px: .*", "typical_px: 64", card.read_text()))
    return Context(pipeline="site", data_dir=folder, run_dir=folder, models_dir=models)


def scan(modality) -> Scan:
    return Scan(scan_id="scan-1", modality=modality, axes=("y", "x"), shape=(None, None), dtype="float32", started_ns=0)


def frame(image, **attachments) -> Frame:
    image = np.array(image, np.float32)
    image.flags.writeable = False
    return Frame(
        scan_id="scan-1", sequence=3, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=1, received_ns=2,
        attachments=attachments,
    )  # fmt: skip


def begun(context, model, modality, **settings):
    stage = make(Settings(model=model, precision="f32", **settings), context)
    stage.begin(scan(modality))
    return stage


def rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module")
def abdomen():
    """Fat around soft tissue with two organs, a spine and gas, in air; HU; and a scan's noise."""
    y, x = np.mgrid[:160, :160] - 79.5
    truth = np.full((160, 160), -1000.0)
    for cy, cx, ry, rx, hu in (
        (0, 0, 52, 70, -100), (0, 0, 45, 63, 40), (-8, -30, 24, 20, 60), (-10, 32, 14, 16, 110), (30, 0, 9, 10, 400),
        (-25, 8, 6, 9, -950),
    ):  # fmt: skip
        truth[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = hu
    truth = truth.astype(np.float32)
    (made,) = scan_low_dose(np.random.default_rng(5), truth, beam_for(160, 360, 1.2), 2.0, LEVEL_HU)
    return made


@pytest.mark.parametrize("known", [True, False], ids=["noise map", "estimated"])
def test_ct_comes_closer_to_the_truth_in_tissue_and_in_air(context, abdomen, known):
    noisy, truth = abdomen.truth + abdomen.noise, abdomen.truth
    given = frame(noisy, noise_map=abdomen.level) if known else frame(noisy)
    result = begun(context, "ct-denoise", "CT").frame(given).array
    assert result.dtype == np.float32
    body, air = truth > -500, truth == -1000
    assert rms((result - truth)[body]) < 0.6 * rms(abdomen.noise[body])
    assert rms((result - truth)[air]) < 0.6 * rms(abdomen.noise[air])
    # noise goes to both sides of -1000: cut off there, the mean of air would be some noise too high
    assert abs((result - truth)[air].mean()) < 0.05 * rms(abdomen.noise[air])
    assert abs((result - noisy)[body].mean()) < 1.0  # HU; what is measured in an organ is not moved


def test_no_hounsfield_unit_changes_by_more_than_the_noise_could(context, abdomen):
    level = np.full_like(abdomen.truth, LEVEL_HU / 4)  # four times too low
    given = frame(abdomen.truth + abdomen.noise, noise_map=level)
    changed = np.abs(begun(context, "ct-denoise", "CT").frame(given).array - given.array)
    assert 2 * LEVEL_HU / 4 < changed.max() <= MOST_SIGMA * LEVEL_HU / 4 * (1 + 1e-4)


def test_ct_without_noise_and_padding_stay_as_they_are(context, abdomen):
    stage = begun(context, "ct-denoise", "CT")
    clean = frame(abdomen.truth, noise_map=np.zeros_like(abdomen.truth))
    assert np.array_equal(stage.frame(clean).array, clean.array)
    padding = frame(np.full((64, 64), -3024.0))  # what scanners put where nothing was measured
    assert np.array_equal(stage.frame(padding).array, padding.array)


def test_a_table_of_high_hounsfield_units_does_not_change_the_scale_of_a_scan(context, abdomen):
    """HU are absolute: what the first frame holds decides nothing for the next."""
    noisy = frame(abdomen.truth + abdomen.noise)
    alone = begun(context, "ct-denoise", "CT").frame(noisy).array
    stage = begun(context, "ct-denoise", "CT")
    stage.frame(frame(np.full((64, 64), 3000.0)))
    assert np.array_equal(stage.frame(noisy).array, alone)


def test_ultrasound_comes_closer_to_what_it_would_show_without_speckle_and_stays_grey(context):
    scene = needle_display(20)
    result = begun(context, "us-despeckle", "US").frame(frame(scene.shown)).array
    assert result.min() >= 0 and result.max() <= 255 and scene.shown.min() == 0
    assert psnr_db(result, scene.truth) > psnr_db(scene.shown, scene.truth) + 6
    assert all(psnr_db(result, scene.truth) > psnr_db(peer(scene.shown, scene.level), scene.truth) for peer in
               PEERS.values())  # fmt: skip


def test_black_and_white_of_a_display_stay_within_it(context):
    """Speckle on saturated and on dark tissue: half of it was cut off by the display already."""
    rng = np.random.default_rng(1)
    image = np.clip(rng.normal(np.where(np.arange(128) < 64, 250, 5), 30, (128, 128)), 0, 255)
    stage = begun(context, "us-despeckle", "US")
    result = stage.frame(frame(image, noise_map=np.full_like(image, 30, np.float32))).array
    assert result.min() >= 0 and result.max() <= 255
    changed = np.abs(result - image.astype(np.float32))
    assert changed.max() > 1


@pytest.mark.parametrize("angle", [0, 20, 40])
def test_a_needle_keeps_its_height_and_width(context, angle):
    scene = needle_display(angle, seed=11)
    result = begun(context, "us-despeckle", "US").frame(frame(scene.shown)).array
    grey, width_px = needle_profile(result, angle)
    true_grey, true_width_px = needle_profile(scene.truth, angle)
    assert grey > 0.9 * true_grey
    assert width_px < true_width_px + 0.5
    others = [needle_profile(peer(scene.shown, scene.level), angle) for peer in PEERS.values()]
    assert grey > max(other for other, _ in others) and width_px < min(other for _, other in others)


@pytest.mark.parametrize(
    ("model", "modality", "what"),
    [
        ("mr-denoise", "CT", "mr-denoise is for MR, got CT"),
        ("ct-denoise", "MR", "ct-denoise is for CT, got MR"),
        ("ct-denoise", "US", "ct-denoise is for CT, got US"),
        ("us-despeckle", "CT", "us-despeckle is for US, got CT"),
    ],
)
def test_a_model_of_another_modality_is_refused_before_any_image(context, model, modality, what):
    with pytest.raises(StageError) as caught:
        make(Settings(model=model), context).begin(scan(modality))
    assert str(caught.value) == f"denoise: {what}; name another"
    assert caught.value.scan_id == "scan-1"
