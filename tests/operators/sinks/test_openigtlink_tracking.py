# SPDX-License-Identifier: Apache-2.0
"""Tracked images at the displays: placed only while the pose is valid, and nothing left over from before."""

import time

import numpy as np
import pytest
from displays import AFFINE, frame, scan, until
from scipy.spatial.transform import Rotation

from appliance.frames import Mark, Tracking
from appliance.igtl import Image, Message, Query, Reply, Status, Text, TrackingData, Transform
from appliance.live.igtl_frames import untracked_name

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
OWN = np.diag([0.2, 0.2, 1.0, 1.0])


def pose(turn_deg=30.0, *translation):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("zyx", [turn_deg, 10, -5], degrees=True).as_matrix()
    matrix[:3, 3] = translation or (10, 20, 30)
    return matrix


VALID = Tracking(pose(), tools={"Stylus": pose(70, 1, 2, 3), "Needle": pose(-20, 4, 5, 6)})
LOST = Tracking(None, "the probe is out of sight")


def until_image(display):
    """Return the messages before the next image, and that."""
    before = []
    display.wait_for(lambda m: before.append(m) or isinstance(m.content, Image))
    return before[:-1], before[-1]


def test_a_valid_pose_brings_the_placed_image_and_a_transform_for_each_tool(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    sink.frame(frame(tracking=VALID))
    before, image = until_image(display)
    assert image.device_name == "nearscan"
    np.testing.assert_allclose(image.content.affine, AFFINE, atol=2e-5)
    transforms = {m.device_name: m for m in before if isinstance(m.content, Transform)}
    assert transforms.keys() == {"StylusToReference", "NeedleToReference"}
    for name, tool in VALID.tools.items():
        message = transforms[f"{name}ToReference"]
        assert message.time_ns == image.time_ns
        np.testing.assert_allclose(message.content.matrix, FLIP @ tool @ FLIP, atol=1e-5)  # RAS on the wire
    assert not any(isinstance(m.content, TrackingData) for m in before), "only who asks gets TDATA"


def test_an_invalid_pose_never_places_an_image_and_says_why(start, connect):
    sink, port = start(keepalive_s=30, removed_name="removed")
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    sink.frame(frame(tracking=VALID))
    until_image(display)
    before_image = np.zeros((6, 5), np.float32)
    mark = Mark("tracking", LOST.reason)
    sink.frame(frame(1, tracking=LOST, affine=OWN, marks=(mark,), original=before_image))
    before, image = until_image(display)
    assert image.device_name == "nearscan_untracked"
    np.testing.assert_allclose(image.content.affine, OWN, atol=1e-6)
    assert [m.content for m in before if not isinstance(m.content, Status)] == [
        Text("TRACKING INVALID: the probe is out of sight")
    ]
    (status,) = (m.content for m in before if isinstance(m.content, Status))
    assert (status.code, status.name) == (13, "TRACKING INVALID")
    assert status.text == "tracking invalid: the probe is out of sight"
    late = connect(port)  # gets what is kept: no pose of before
    first = [late.wait_for(lambda m: True) for _ in range(2)]
    assert {type(m.content) for m in first} == {Status, Text}
    assert next(m.content.name for m in first if isinstance(m.content, Status)) == "TRACKING INVALID"
    sink.frame(frame(2, tracking=VALID))
    before, image = until_image(display)
    assert image.device_name == "nearscan", "what was removed was not sent of the untracked image"
    assert [m.content.name for m in before if isinstance(m.content, Status)] == ["LIVE"]
    assert sink.status()["untracked_frames"] == 1


@pytest.mark.parametrize(
    ("matrix", "text"),
    [
        (pose() * np.nan, "it holds NaN"),
        (pose() @ np.diag([1, 1, 1.1, 1]), "scaled"),
        (pose() @ np.diag([1, 1, -1, 1]), "mirrored"),
    ],
)
def test_a_pose_that_is_no_rigid_transform_is_invalid_whoever_sends_it(start, connect, matrix, text):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    sink.frame(frame(tracking=Tracking(matrix)))
    before, image = until_image(display)
    assert image.device_name == "nearscan_untracked"
    status = next(m.content for m in before if isinstance(m.content, Status) and m.content.name != "LIVE")
    assert (status.name, status.text.startswith(f"tracking invalid: {text}")) == ("TRACKING INVALID", True)
    sink.frame(frame(1, tracking=Tracking(pose(), tools={"Bad": matrix, "Good": pose()})))
    before, _ = until_image(display)
    assert [m.device_name for m in before if isinstance(m.content, Transform)] == ["GoodToReference"]
    assert text in sink.alarms["openigtlink tools"]


def test_a_tool_whose_name_does_not_fit_is_not_sent_under_another(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    sink.frame(frame(tracking=Tracking(pose(), tools={"LeftNeedle": pose(), "LeftNeedl": pose()})))
    before, _ = until_image(display)
    assert [m.device_name for m in before if isinstance(m.content, Transform)] == ["LeftNeedlToReference"]
    assert "'LeftNeedleToReference' is longer than 20 bytes" in sink.alarms["openigtlink tools"]


def test_stale_wins_over_tracking_invalid_and_that_over_live(start, connect):
    sink, port = start(stale_ms=300, keepalive_s=0.05)
    display = connect(port)
    sink.begin(scan(modality="US"))
    display.status("LIVE")
    sink.frame(frame(tracking=LOST, affine=OWN))
    display.status("TRACKING INVALID")
    stale = display.status("STALE")
    assert stale.subcode >= 300


def test_poses_as_tdata_for_who_asks_and_at_its_pace(start, connect):
    sink, port = start(keepalive_s=60)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    display.ask(Message(Query("STT", "TDATA")))
    assert display.wait_for(lambda m: isinstance(m.content, Reply)).content == Reply("TDATA", True)
    sink.frame(frame(tracking=VALID))
    tools = display.wait_for(lambda m: isinstance(m.content, TrackingData)).content.tools
    assert [tool.name for tool in tools] == ["Stylus", "Needle"]
    np.testing.assert_allclose(tools[0].matrix, FLIP @ VALID.tools["Stylus"] @ FLIP, atol=1e-5)
    display.ask(Message(Query("STP", "TDATA")))
    display.wait_for(lambda m: isinstance(m.content, Reply))
    sink.frame(frame(1, tracking=VALID))
    before, _ = until_image(display)
    assert {type(m.content) for m in before} <= {Transform, Status}


def test_a_display_that_reads_on_late_gets_no_pose_of_a_frame_that_is_gone(start, connect):
    sink, port = start(image_type="float32", send_timeout_s=60, stale_ms=60_000)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    array, n_frames = np.ones((1024, 1024), np.float32), 0
    while sink.status()["displays"][0]["dropped"] < 3:  # it reads nothing for now
        sink.frame(frame(n_frames, array, tracking=VALID))
        n_frames += 1
        time.sleep(0.005)
    sink.frame(frame(n_frames, array, tracking=LOST, affine=OWN))
    seen = []
    display.wait_for(lambda m: seen.append(m) or m.device_name == "nearscan_untracked")
    placed = [m.time_ns for m in seen if isinstance(m.content, Image)][:-1]
    poses = [m.time_ns for m in seen if isinstance(m.content, Transform)]
    assert max(poses) <= max(placed) < seen[-1].time_ns
    assert seen[-2].content.name == "TRACKING INVALID"


def test_a_display_that_reads_on_after_the_source_stopped_is_not_shown_what_waited(start, connect):
    sink, port = start(image_type="float32", send_timeout_s=60, stale_ms=200)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality="US"))
    array, n_frames = np.ones((1024, 1024), np.float32), 0
    while sink.status()["displays"][0]["dropped"] < 3:
        sink.frame(frame(n_frames, array, tracking=VALID))
        n_frames += 1
        time.sleep(0.005)
    dropped = sink.status()["displays"][0]["dropped"]
    until(lambda: sink.status()["displays"][0]["dropped"] == dropped + 1)  # when it became stale
    seen = []
    display.wait_for(lambda m: seen.append(m) or (isinstance(m.content, Status) and m.content.name == "STALE"))
    times = [m.time_ns - 1_700_000_000_000_000_000 for m in seen if isinstance(m.content, Image)]
    assert max(times) < n_frames - 1


def test_names_of_untracked_images_fit():
    assert untracked_name("nearscan") == "nearscan_untracked"
    assert untracked_name("a-very-long-device-n") == "a-very-lon_untracked"
    assert len(untracked_name("ü" * 20).encode()) <= 20
