# SPDX-License-Identifier: Apache-2.0
"""Faults planted into ultrasound clips are found where they are; clean clips are silent."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from appliance.faults.detector import default_thresholds
from appliance.frames import Frame, Scan
from appliance.imaging.metaimage import read_metaimage
from appliance.ultrasound.faults import CLIP_FRAME_S, UltrasoundFaults
from training import us_faults

TRACKED = Path(__file__).parents[4] / "shared" / "data" / "us_tracked" / "TestImages"
N_FRAMES = 8
WORDS = {
    "probe_decoupling": "add gel or press the probe on",
    "dropped_lines": "check the probe's connector, try another probe: an element may have failed",
    "gain_saturation": "echoes there cannot be told apart; lower the gain",
}


def scan(**more):
    return Scan("s", "US", ("y", "x"), (None, None), "float32", 0, **more)


def detector(begun=None, **thresholds):
    made = UltrasoundFaults(default_thresholds(UltrasoundFaults.RULES) | thresholds)
    made.begin(begun or scan())
    return made


def frame(image, number=0, at_s=None):
    at_ns = round((number * us_faults.FRAME_S if at_s is None else at_s) * 1e9)
    return Frame(
        scan_id="s", sequence=number, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=at_ns, received_ns=0
    )


def judge(judging, images):
    return [judging.judge(frame(image, number)) for number, image in enumerate(images)]


@pytest.fixture(scope="module")
def clips():
    """Of probes and tissues that nothing was tuned on."""
    made = [us_faults.clip(np.random.default_rng([73, number]), 192, N_FRAMES) for number in range(4)]
    for image in (image for clip in made for image in clip):
        image.flags.writeable = False
    return made


def test_clean_clips_are_silent_and_everything_was_checked(clips):
    for clip in clips:
        judging = detector()
        assert not any(judge(judging, clip))
        assert (judging.measured.keys(), judging.unchecked) == (UltrasoundFaults.RULES.keys(), [])


@pytest.mark.parametrize("kind", WORDS)
def test_a_planted_fault_is_found_where_it_is(clips, kind):
    for number, clip in enumerate(clips):
        planted = us_faults.plant(np.random.default_rng([74, number]), kind, clip[-1])
        found = {finding.kind: finding for finding in judge(detector(), [*clip[:-1], planted.image])[-1]}
        assert kind in found
        assert found[kind].measured > found[kind].threshold == UltrasoundFaults.RULES[kind].default
        assert (found[kind].severity, WORDS[kind] in found[kind].message) == ("warning", True)
        if kind == "dropped_lines":
            assert abs(found[kind].where["column"] - planted.column) <= 3
        if kind == "probe_decoupling":  # strips are 1/32 of the width
            assert found[kind].where["first_percent"] == pytest.approx(100 * planted.column / 192, abs=5)


@pytest.mark.parametrize("name", ["SpinePhantomFreehand", "fCal_Test_Validation_3NWires_fCal2.0"])
def test_real_frames_are_silent(name):
    path = TRACKED / f"{name}.igs.mha"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    assert not any(judge(detector(), list(read_metaimage(path.read_bytes()).array[:40])))


@pytest.mark.parametrize("kind", WORDS)
def test_faults_planted_into_real_frames_are_found(kind):
    path = TRACKED / "SpinePhantomFreehand.igs.mha"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    images = list(read_metaimage(path.read_bytes()).array[:7].astype(np.float32))
    for number in range(3):
        planted = us_faults.plant(np.random.default_rng([75, number]), kind, images[-1])
        assert kind in [f.kind for f in judge(detector(), [*images[:-1], planted.image])[-1]]


def test_a_frozen_picture_is_an_alarm_after_half_a_second_and_until_it_moves(clips):
    moving, judging = clips[0], detector()
    still = moving[3].copy()
    found = judge(judging, [*moving[:4], *[still] * 14, *moving[4:]])
    kinds = [[finding.kind for finding in each] for each in found]
    # frame 3 was new; the eleventh repetition is more than 0.5 s later
    assert kinds == [["frozen_image"] if 14 <= number < 18 else [] for number in range(len(found))]
    (finding,) = found[14]
    assert (finding.severity, finding.measured) == ("alarm", pytest.approx(0.55))
    assert finding.message == (
        "the picture has not changed for 0.55 s: it is not live; release Freeze on the ultrasound machine, else check "
        "the video cable"
    )


def test_a_clock_beside_a_frozen_picture_does_not_hide_it(clips):
    judging = detector()
    for number in range(20):
        image = clips[0][0].copy()
        image[:4, :4] = 50 + number
        found = judging.judge(frame(image, number))
    assert [finding.kind for finding in found] == ["frozen_image"]


def test_a_frame_grabber_that_is_faster_than_the_machine_is_no_fault(clips):
    judging = detector()
    for number in range(6 * N_FRAMES):  # 60 frames a second of 10 pictures
        assert judging.judge(frame(clips[1][number // 6], number, number / 60)) == []


def test_stored_clips_are_judged_each_by_itself(clips):
    stored = scan(attributes={"clips": True})
    judging = detector(stored)
    for number, image in enumerate(clips[0]):  # another picture each, and nothing to compare it with
        dark = image * np.float32(0.2 if number % 2 else 1)
        assert [f.kind for f in judging.judge(frame(dark, at_s=number))] == []
        assert "probe_decoupling" in judging.unchecked
    for number in range(3):  # the same picture stored again: with callipers, without
        assert judging.judge(frame(clips[0][0], at_s=100 + number)) == []
    judging = detector(stored)
    n_still = int(0.5 / CLIP_FRAME_S) + 2
    found = [judging.judge(frame(clips[0][0], at_s=7.0)) for _ in range(n_still + 1)]
    assert [bool(each) for each in found[-2:]] == [True, True], "frames of one clip that are all the same"
    assert not any(found[: n_still - 2])


def test_lines_of_a_curved_probe_are_said_not_to_be_checked():
    y, x = np.mgrid[:240, :300]
    angle, radius = np.arctan2(x - 150, y + 80), np.hypot(x - 150, y + 80)
    fan = (np.abs(angle) < 0.5) & (radius > 90) & (radius < 300)
    judging, rng = detector(), np.random.default_rng(0)
    for number in range(5):
        found = judging.judge(frame(np.where(fan, rng.uniform(30, 120, fan.shape), 0).astype(np.float32), number))
    assert (found, judging.unchecked) == ([], ["dropped_lines"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_the_dtype_does_not_matter_and_the_frame_stays_as_it_was(clips, dtype):
    judging, reference = detector(), detector()
    for number, image in enumerate(clips[2]):
        given = image.astype(dtype)
        before = given.copy()
        judging.judge(frame(given, number))
        reference.judge(frame(image, number))
        assert np.array_equal(given, before)
        assert judging.measured == reference.measured


def test_the_image_before_despeckling_is_the_one_that_is_judged(clips):
    white = np.where(clips[0][-1] > 20, 255, clips[0][-1]).astype(np.float32)
    judging = detector()
    judge(judging, clips[0][:-1])
    given = dataclasses.replace(frame(clips[0][-1], N_FRAMES), original=white)
    assert [finding.kind for finding in judging.judge(given)] == ["gain_saturation"]


def test_numbers_that_are_none_and_black_pictures_are_alarms(clips):
    broken = clips[0][0].copy()
    broken[2, 2:4] = np.inf
    (finding,) = detector().judge(frame(broken))
    assert (finding.kind, finding.severity, finding.message) == (
        "not_finite", "alarm", "2 pixels are not numbers; do not use this image",
    )  # fmt: skip
    judging = detector()
    (finding,) = judging.judge(frame(np.zeros((192, 192), np.uint8)))
    assert (finding.kind, finding.severity, judging.measured) == ("all_zero", "alarm", {})
    assert finding.message == "the picture is black; check the probe, the video cable and Freeze"


@pytest.mark.parametrize("shape", [(1, 1), (10, 300), (300, 10)])
def test_next_to_no_picture_is_not_checked_for_more_than_freezing(shape):
    judging = detector()
    assert judging.judge(frame(np.full(shape, 90, np.uint8))) == []
    assert judging.unchecked == [rule for rule in UltrasoundFaults.RULES if rule != "frozen_image"]


def test_values_beyond_a_display_are_not_called_white(clips):
    judging = detector()
    assert judging.judge(frame(clips[0][0] * np.float32(100))) == []
    assert "gain_saturation" in judging.unchecked


def test_colour_is_refused():
    with pytest.raises(ValueError, match=r"expected grey images \(y, x\), got \(y, x, colour\); send B-mode without"):
        detector(Scan("s", "US", ("y", "x", "colour"), (None, None, 3), "uint8", 0))
