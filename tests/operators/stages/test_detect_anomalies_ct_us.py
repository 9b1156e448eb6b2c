# SPDX-License-Identifier: Apache-2.0
"""The stage on CT and ultrasound: findings, votes, alarms and commissioning are those of MR."""

import re

import numpy as np
import pytest

from appliance.context import Context
from appliance.ct.faults import CtFaults
from appliance.errors import StageError
from appliance.faults.commissioned import Commissioned, Learnt, Setup, commissioned_path, write_commissioned
from appliance.frames import Frame, Position, Scan
from appliance.ultrasound.faults import UltrasoundFaults
from operators.stages.detect_anomalies import DETECTORS, Settings, make
from training import ct_faults, us_faults
from training.low_dose_ct import hu_phantom
from training.parallel_beam import beam_for

SIZE = 256


def scan(modality, axes=("y", "x"), **more):
    return Scan("scan-1", modality, axes, (None,) * len(axes), "float32", 0, **more)


def frame(image, number=0, slice_index=0):
    return Frame(
        scan_id="scan-1", sequence=number, array=image, axes=("y", "x"), affine=np.eye(4),
        acquired_ns=round(number * us_faults.FRAME_S * 1e9), received_ns=0, position=Position(slice=slice_index),
    )  # fmt: skip


@pytest.fixture
def begin(tmp_path):
    """A stage that has begun, and the alarms that it keeps."""

    def new(begun, **settings):
        alarms = {}
        stage = make(Settings(**settings), Context("test", tmp_path, tmp_path, alarm=alarms.__setitem__))
        assert stage.begin(begun) is begun
        return stage, alarms

    return new


@pytest.fixture(scope="module")
def body():
    rng = np.random.default_rng([76, 3])
    return ct_faults.scan(rng, hu_phantom(rng, SIZE), beam_for(SIZE, 480), 0.75, 8.0)


@pytest.fixture(scope="module")
def clip():
    return us_faults.clip(np.random.default_rng([76, 1]), 160, 24)


def test_a_ring_of_some_slices_is_an_alarm_with_the_third_and_until_five_are_good(begin, body):
    stage, alarms = begin(scan("CT"))
    planted = ct_faults.plant(np.random.default_rng(3), "rings", body)
    history = []
    for number in range(20):
        faulty = 6 <= number < 10
        given = frame(planted.image if faulty else body.image, number, slice_index=number)
        result = stage.frame(given)
        assert result.array is given.array
        assert [finding.kind for finding in result.findings] == (["rings"] if faulty else [])
        if faulty:
            assert result.findings[0].severity == ("alarm" if number >= 8 else "warning")
        history.append(alarms["acquisition"])
    assert [bool(text) for text in history] == [8 <= number < 14 for number in range(20)]
    (event,) = stage.status()["events"]
    assert (event["kind"], event["sequence"], event["last_sequence"], event["alarm"]) == ("rings", 6, 9, True)
    assert event["where"]["radius_px"] == pytest.approx(abs(planted.where), abs=1.5)
    for part in (r"^ring of [+-]\d+ HU, \d+ pixels from the centre of rotation, on which \d+ % of the turn agree; ",
                 r"calibrate the detector with an air scan \(since frame 6\)$"):  # fmt: skip
        assert re.search(part, history[8])


def test_a_probe_that_loses_contact_is_an_alarm_with_the_third_frame(begin, clip):
    stage, alarms = begin(scan("US"))
    history = []
    for number, image in enumerate(clip):
        given = image.copy()
        if 8 <= number < 14:
            given[:, 80:] *= 0.02
        found = stage.frame(frame(given, number)).findings
        assert [finding.kind for finding in found] == (["probe_decoupling"] if 8 <= number < 14 else [])
        history.append(alarms["acquisition"])
    assert [bool(text) for text in history] == [10 <= number < 18 for number in range(24)]
    assert history[10] == (
        "the probe lost contact over 50 % of its width, between 50 and 100 % from the left; add gel or press the probe "
        "on (since frame 8)"
    )
    assert stage.status()["findings"] == {"probe_decoupling": 6}


def test_a_frozen_picture_is_an_alarm_at_once(begin, clip):
    stage, _ = begin(scan("US"))
    for number in range(12):
        found = stage.frame(frame(clip[0], number)).findings
    assert [(finding.kind, finding.severity) for finding in found] == [("frozen_image", "alarm")]
    assert stage.status()["events"][0]["alarm"]


@pytest.mark.parametrize(
    ("modality", "detector", "setup"),
    [("CT", CtFaults, "CT images"), ("US", UltrasoundFaults, "ultrasound images")],
)
def test_thresholds_of_commissioning_and_of_the_settings_hold(begin, body, clip, tmp_path, modality, detector, setup):
    images = [body.image] * 5 if modality == "CT" else clip[:5]
    rule = "missing_views" if modality == "CT" else "gain_saturation"
    stage, _ = begin(scan(modality))
    assert stage.status()["commissioned"].startswith("not commissioned: default thresholds; run 'nearscan commission")
    for number, image in enumerate(images):
        assert stage.frame(frame(image, number)).findings == ()
    assert stage.status()["measured"].keys() == detector.RULES.keys()
    usual = stage.status()["measured"][rule]
    known = Setup(n_frames=600, rules={rule: Learnt(threshold=usual - 1e-3, centre=usual, spread=0.1)})
    site = Commissioned(pipeline="test", version="1", false_alarm_rate=1e-4, setups={setup: known})
    write_commissioned(commissioned_path(tmp_path, "test"), site)
    stage, _ = begin(scan(modality))
    assert stage.status()["commissioned"] == f"for {setup}, from 600 frames"
    kinds = [f.kind for number, image in enumerate(images) for f in stage.frame(frame(image, number)).findings]
    assert rule in kinds, "clean images have more than that threshold"
    stage, _ = begin(scan(modality), thresholds={rule: 50.0})
    assert not any(stage.frame(frame(image, number)).findings for number, image in enumerate(images))


def test_rules_can_be_switched_off_but_broken_numbers_are_always_told(begin, body):
    planted = ct_faults.plant(np.random.default_rng(3), "rings", body).image
    stage, _ = begin(scan("CT"), rules=["streaks", "gain_saturation"])
    assert stage.frame(frame(planted)).findings == ()
    broken = np.where(np.arange(SIZE) == 7, np.nan, planted)
    assert [finding.kind for finding in stage.frame(frame(broken, 1)).findings] == ["not_finite"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (scan("CT", ("z", "y", "x")), "expected CT images (y, x), got (z, y, x); put it before volume stages"),
        (scan("US", ("y", "x", "colour")), "expected grey images (y, x), got (y, x, colour); send B-mode without"),
    ],
)
def test_a_scan_that_it_cannot_judge_is_refused(begin, given, text):
    with pytest.raises(StageError) as caught:
        begin(given)
    assert str(caught.value).startswith(f"detect_anomalies: {text}")


def test_names_of_rules_belong_to_one_modality():
    names = [name for detector in DETECTORS.values() for name in detector.RULES]
    assert len(names) == len(set(names)), "commissioning and settings know rules by their names"


def test_no_alarm_without_findings_for_what_is_no_slice(begin, body):
    planted = ct_faults.plant(np.random.default_rng(3), "rings", body).image
    stage, _ = begin(scan("CT", attributes={"image_type": ("ORIGINAL", "PRIMARY", "LOCALIZER")}))
    given = frame(planted)
    assert stage.frame(given) is given
    assert stage.status()["unchecked"] == list(CtFaults.RULES)
