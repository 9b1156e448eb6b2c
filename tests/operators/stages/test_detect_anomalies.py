# SPDX-License-Identifier: Apache-2.0
"""The stage adds findings to frames and changes nothing else; real and moving data stays silent."""

import dataclasses
import functools
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from pydantic import ValidationError

from appliance.context import Context
from appliance.errors import StageError
from appliance.faults.commissioned import Commissioned, Learnt, Setup, commissioned_path, write_commissioned
from appliance.frames import Encoding, Finding, Frame, Position, Scan
from appliance.mri.faults import KSPACE_AXES
from appliance.mri.phantom import BREATH_FRAMES, cine_image, cine_kspace, noise_samples
from appliance.mri.reconstruct import Grid, zero_filled
from appliance.mri.rules import RULES
from appliance.simulate.mri import cine_encoding
from operators.stages.detect_anomalies import Settings, make

DATA = Path(__file__).parents[4] / "shared" / "data"
MATRIX = (128, 128)
KY = np.arange(0, 128, 2)
NOT_HERE = {"slice_dropout", "odd_even_first"}  # one slice, and not its first frame
FIRST_FRAME = {"coil_drop", "noisy_coil", "signal_drop", "low_snr", "displacement", "motion", "odd_even"}


@pytest.fixture
def new_stage(tmp_path):
    def new(begun=None, **settings):
        stage = make(Settings(**settings), Context("test", tmp_path, tmp_path))
        stage.begin(begun or scan())
        return stage

    return new


def frame(sequence, kspace=None, image=None, ky=KY, position=None, **more):
    attachments = {} if kspace is None else {"kspace": kspace, "ky": np.asarray(ky)} | more
    array, axes = (image, ("y", "x")) if image is not None else (kspace, KSPACE_AXES)
    return Frame(
        scan_id="scan-1",
        sequence=sequence,
        array=array,
        axes=axes,
        affine=np.eye(4),
        acquired_ns=0,
        received_ns=0,
        position=position or Position(),
        attachments=attachments,
    )


def scan(modality="MR", axes=KSPACE_AXES):
    return Scan("scan-1", modality, axes, (None,) * len(axes), "complex64", 0)


def image_of(kspace, ky, n_ky):
    """Root sum of squares of the zero-filled data."""
    full = np.zeros((len(kspace), n_ky, kspace.shape[2]), np.complex64)
    full[:, ky] = kspace
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(full, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    return np.sqrt(np.sum(np.abs(images) ** 2, axis=0)).astype(np.float32)


@pytest.fixture(scope="module")
def breath():
    """One breath of a beating heart, R = 2."""
    frames = [cine_kspace(index, MATRIX)[:, ::2].copy() for index in range(BREATH_FRAMES)]
    for kspace in frames:
        kspace.flags.writeable = False
    return frames


@pytest.mark.parametrize("column", [60, 100, 131])
def test_a_zipper_is_placed_on_the_image_also_where_the_readout_was_oversampled(new_stage, column):
    whole, cut = (480.0, 240.0, 5.0), (240.0, 240.0, 5.0)
    encoding = Encoding((192, 128, 1), (96, 128, 1), whole, cut, n_coils=4)
    rng, ky = np.random.default_rng(0), np.arange(128)
    kspace = (rng.normal(size=(4, 128, 192)) + 1j * rng.normal(size=(4, 128, 192))).astype(np.complex64)
    wave = np.exp(-2j * np.pi * (column - 96) * (np.arange(192) - 96) / 192)
    kspace += (20 * np.exp(2j * np.pi * rng.random(128))[:, None] * wave).astype(np.complex64)
    stage = new_stage(dataclasses.replace(scan(), encoding=encoding))
    found = stage.frame(frame(0, kspace, ky=ky)).findings
    (zipper,) = [one for one in found if one.kind == "zipper"]
    image = np.abs(zero_filled(Grid.of(encoding), kspace, ky))  # the oracle: what reconstruction shows
    assert round(zipper.where["of_width"] * 96) == image.sum(axis=0).argmax()


def test_500_frames_of_a_beating_breathing_chest_are_silent(new_stage, breath):
    stage = new_stage()
    assert stage.begin(scan()).axes == KSPACE_AXES
    for sequence in range(500):
        index = sequence % BREATH_FRAMES
        given = frame(sequence, breath[index], cine_image(index, MATRIX))
        assert stage.frame(given) is given
    status = stage.status()
    assert (status["findings"], status["events"], status["unchecked"]) == ({}, [], [])
    assert status["measured"]["ghosting"] < 0.02
    assert status["measured"].keys() == {name for name, rule in RULES.items() if rule.default} - NOT_HERE
    assert list(stage.end()) == []


@functools.cache
def mrd_lines(name):
    path = DATA / "mrd" / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as file:
        lines = [file.read_acquisition(index) for index in range(file.number_of_acquisitions())]
    lines.sort(key=lambda line: line.idx.kspace_encode_step_1)
    ky = np.array([line.idx.kspace_encode_step_1 for line in lines])
    calibration = np.array([line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) for line in lines])
    return np.stack([line.data for line in lines], axis=1), ky, calibration


@pytest.mark.parametrize("name", ["brain8ch_semireal_full.h5", "brain8ch_semireal_R2_acs24.h5"])
def test_real_brain_data_is_silent(new_stage, name):
    kspace, ky, calibration = mrd_lines(name)
    reference, every, _ = mrd_lines("brain8ch_semireal_full.h5")
    image = image_of(reference, every, 180)
    stage, rng = new_stage(), np.random.default_rng(0)
    for sequence in range(20):  # the second and later ones with a little noise of their own
        noise = 0.005 * sequence * rng.standard_normal((*kspace.shape, 2), dtype=np.float32).view(np.complex64)[..., 0]
        given = frame(sequence, kspace + noise, image, ky, calibration_only=calibration)
        assert stage.frame(given).findings == ()
    assert stage.status()["unchecked"] == []


@pytest.mark.parametrize("coils", [slice(0, 1), slice(2, 4), slice(0, 8)])
@pytest.mark.parametrize("acceleration", [1, 2, 3, 4])
def test_real_brain_data_is_silent_with_fewer_lines_and_coils(new_stage, coils, acceleration):
    kspace, ky, _ = mrd_lines("brain8ch_semireal_full.h5")
    for offset in range(acceleration):
        taken = slice(offset, None, acceleration)
        assert new_stage().frame(frame(0, kspace[coils, taken], ky=ky[taken])).findings == ()


def test_sparsely_sampled_real_data_is_silent_and_says_what_is_not_checked(new_stage):
    path = DATA / "kspace_brain_8ch" / "cartesian_ksp.npy"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    kspace = np.load(path)
    stage = new_stage()
    given = frame(0, kspace, image_of(kspace, np.arange(230), 230), np.arange(230))
    assert stage.frame(given).findings == ()
    unchecked = set(stage.status()["unchecked"])
    assert {"spike", "zipper", "line_drop", "noisy_coil", "low_snr"} <= unchecked
    assert not {"coil_drop", "clipping", "ghosting"} & (unchecked - FIRST_FRAME)


def test_planted_faults_become_findings_in_the_same_frame_and_events(new_stage, breath):
    stage, old = new_stage(), Finding("other", "found before")
    for sequence in range(60):
        kspace = breath[sequence].copy()
        if sequence == 20:
            kspace[3, 16, 25] += np.abs(kspace).max()
        if 30 <= sequence < 40:
            kspace[5] = 0
        given = frame(sequence, kspace, cine_image(sequence, MATRIX))
        given = dataclasses.replace(given, findings=(old,))
        result = stage.frame(given)
        assert result.findings[0] is old
        assert result.array is given.array
        assert result.attachments is given.attachments
        assert [f.kind for f in result.findings[1:]] == (
            ["spike"] if sequence == 20 else ["coil_drop"] if 30 <= sequence < 40 else []
        )
        if 30 < sequence < 40:
            n_hits = min(sequence - 29, 5)
            assert result.findings[1].message.endswith(f"(since frame 30, in {n_hits} of the last 5 frames)")
            assert result.findings[1].severity == ("alarm" if n_hits >= 3 else "warning")
    spike, drop = stage.status()["events"]
    assert (spike["kind"], spike["sequence"], spike["last_sequence"]) == ("spike", 20, 20)
    assert spike["where"] == {"coil": 3, "line": 32, "column": 25}
    assert (drop["kind"], drop["sequence"], drop["last_sequence"]) == ("coil_drop", 30, 39)
    assert drop["where"] == {"coil": 5}
    assert stage.status()["findings"] == {"spike": 1, "coil_drop": 10}


def test_slices_of_different_brightness_are_judged_each_by_itself(new_stage, breath):
    stage, brightness = new_stage(), (1.0, 0.3, 3.0, 0.6)
    for sequence in range(40):
        index = sequence % 4
        dimmed = 0.6 if sequence == 33 else 1.0
        kspace = (brightness[index] * dimmed * breath[sequence]).astype(np.complex64)
        found = stage.frame(frame(sequence, kspace, position=Position(slice=index))).findings
        assert [f.kind for f in found] == (["slice_dropout"] if sequence == 33 else [])
    assert stage.status()["events"][0]["where"] == {"slice": 1}


def test_calibration_lines_of_the_first_frame_do_not_disturb_the_baseline(new_stage):
    stage = new_stage()
    every = np.arange(128)
    extra = (np.abs(every - 64) < 12) & (every % 2 == 1)
    for sequence in range(10):
        taken = (every % 2 == 0) | (extra if sequence == 0 else False)
        kspace = cine_kspace(sequence, MATRIX)[:, taken]
        kspace = kspace if sequence < 8 else (0.6 * kspace).astype(np.complex64)
        given = frame(sequence, kspace, ky=every[taken], calibration_only=extra[taken])
        assert [f.kind for f in stage.frame(given).findings] == ([] if sequence < 8 else ["signal_drop"])


def test_rules_can_be_switched_off_but_broken_numbers_are_always_told(new_stage, breath):
    stage = new_stage(rules=["spike"])
    kspace = breath[0].copy()
    kspace[2] = 0
    assert stage.frame(frame(0, kspace)).findings == ()
    kspace[1, 10, 10] = np.nan
    assert [f.kind for f in stage.frame(frame(1, kspace)).findings] == ["not_finite"]
    with pytest.raises(ValidationError):
        Settings(rules=["spikes"])


def test_without_kspace_the_image_is_checked_and_the_rest_is_named(new_stage):
    stage = new_stage(scan(axes=("y", "x")))
    for sequence in range(8):
        image = cine_image(sequence) * np.float32(0.6 if sequence == 6 else 1)
        image = cine_image(6) * np.float32(0.6) if sequence == 7 else image
        found = stage.frame(frame(sequence, image=image)).findings
        assert [f.kind for f in found] == {6: ["signal_drop"], 7: ["frozen"]}.get(sequence, [])
    assert {"spike", "zipper", "coil_drop", "noisy_coil", "clipping", "low_snr"} <= set(stage.status()["unchecked"])


def test_the_image_before_denoising_is_the_one_that_is_judged(new_stage, breath):
    ghosted = np.zeros((128, 128), np.float32)
    ghosted[40:88, 20:108] = 1
    ghosted += 0.2 * np.roll(ghosted, 64, axis=0)
    given = dataclasses.replace(frame(0, breath[0], cine_image(0, MATRIX)), original=ghosted)
    assert [f.kind for f in new_stage().frame(given).findings] == ["ghosting"]
    broken = dataclasses.replace(given, original=np.full((128, 128), np.nan, np.float32))
    assert [f.kind for f in new_stage().frame(broken).findings] == ["not_finite"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (scan("XA", ("y", "x")), "no rules for 'XA'; remove it here"),
        (scan(axes=("coil", "y", "x")), "expected axes (coil, ky, kx) or (y, x), got (coil, y, x); put it after"),
    ],
)
def test_a_scan_that_it_cannot_judge_is_refused(new_stage, given, text):
    with pytest.raises(StageError) as caught:
        new_stage(given)
    assert text in str(caught.value)


def test_lines_that_do_not_fit_are_refused(new_stage, breath):
    with pytest.raises(ValueError, match=r"shape \(8, 64, 128\) does not fit 63 line indices, of which 0 only calib"):
        new_stage().frame(frame(0, breath[0], ky=KY[:63]))


def test_a_lasting_fault_is_an_alarm_with_its_third_frame_and_until_five_are_good(breath, tmp_path):
    alarms = {}
    context = Context("test", tmp_path, tmp_path, alarm=lambda key, text: alarms.__setitem__(key, text))
    stage = make(Settings(), context)
    stage.begin(scan())
    history = []
    for sequence in range(30):
        kspace = breath[sequence].copy()
        if 10 <= sequence < 16:
            kspace[:, 20:] += 0.1 * np.exp(1j * 0.7 * np.arange(128)) * np.exp(2j * np.pi * KY[20:, None] * 0.37)
        stage.frame(frame(sequence, kspace, cine_image(sequence, MATRIX)))
        history.append(bool(alarms["acquisition"]))
    assert history == [12 <= sequence < 20 for sequence in range(30)]
    (event,) = stage.status()["events"]
    assert (event["kind"], event["alarm"], event["sequence"], event["last_sequence"]) == ("zipper", True, 10, 15)


def test_an_alarm_of_the_last_scan_is_cleared_by_the_next(tmp_path):
    alarms = {"acquisition": "coil 5 gives no data"}
    stage = make(Settings(), Context("test", tmp_path, tmp_path, alarm=lambda key, text: alarms.update({key: text})))
    stage.begin(scan())
    assert alarms["acquisition"] == ""


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("motion", lambda k: k * np.exp(1j * 2 * np.pi * 5 / 128 * (KY - 64) * (KY > 68))[:, None]),
        ("odd_even", lambda k: k * np.exp(0.5j * (np.arange(64) % 2))[:, None]),
        ("displacement", lambda k: k * np.exp(2j * np.pi * 6 / 128 * np.arange(128))),
        ("line_drop", lambda k: k * np.where(np.arange(64) == 36, 0, 1)[:, None]),
        ("low_snr", lambda k: k + noise_samples(k.shape, 0.1, seed=9)),
    ],
)
def test_each_fault_of_a_frame_among_clean_ones_is_named(new_stage, breath, kind, damage):
    stage = new_stage()
    for sequence in range(14):
        kspace = breath[sequence] if sequence < 12 else damage(breath[sequence]).astype(np.complex64)
        found = stage.frame(frame(sequence, kspace, cine_image(sequence, MATRIX))).findings
        assert kind in [f.kind for f in found] if sequence >= 12 else found == ()


def commission(folder, setup="8 coils, acceleration 2", **thresholds):
    rules = {name: Learnt(threshold=value, centre=1.0, spread=0.1) for name, value in thresholds.items()}
    path = commissioned_path(folder, "test")
    write_commissioned(
        path,
        Commissioned(
            pipeline="test", version="1", false_alarm_rate=1e-4, setups={setup: Setup(n_frames=600, rules=rules)}
        ),
    )
    return path


def encoded(n_coils=8):
    encoding = dataclasses.replace(cine_encoding((n_coils, *MATRIX), 2))
    return dataclasses.replace(scan(), encoding=encoding)


def test_thresholds_of_commissioning_hold_for_their_setup_only(new_stage, breath, tmp_path):
    commission(tmp_path, spike=1.0)
    stage = new_stage(encoded())
    assert [f.kind for f in stage.frame(frame(0, breath[0])).findings] == ["spike"], "clean data has 1.5"
    assert stage.status()["commissioned"] == "for 8 coils, acceleration 2, from 600 frames"
    assert stage.status()["unusual"] > 0
    stage = new_stage(encoded(n_coils=4))
    assert stage.frame(frame(0, breath[0][:4])).findings == ()
    assert stage.status()["commissioned"] == (
        "not commissioned for 4 coils, acceleration 2: default thresholds; run 'nearscan commission test' after 500 "
        "clean frames"
    )


def test_a_threshold_of_the_settings_stands_over_all(new_stage, breath, tmp_path):
    commission(tmp_path, spike=1.0)
    stage = new_stage(encoded(), thresholds={"spike": 4})
    assert stage.frame(frame(0, breath[0])).findings == ()
    with pytest.raises(ValidationError, match="unknown rule 'frozen'"):
        Settings(thresholds={"frozen": 1})


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 100, b"[]", b'{"format": 2}'])
def test_a_damaged_file_of_commissioning_is_an_alarm_and_defaults_hold(breath, tmp_path, content):
    alarms = {}
    path = commission(tmp_path, spike=1.0)
    path.write_bytes(content)
    context = Context("test", tmp_path, tmp_path, alarm=lambda key, text: alarms.__setitem__(key, text))
    stage = make(Settings(), context)
    stage.begin(encoded())
    assert stage.frame(frame(0, breath[0])).findings == ()
    assert alarms["commissioning"].startswith(f"default thresholds are used: {path}: ")
    assert alarms["commissioning"].endswith("run 'nearscan commission test' again")
    assert "not commissioned" in stage.status()["commissioned"]
