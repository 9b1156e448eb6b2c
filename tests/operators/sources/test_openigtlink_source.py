# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink source with a server that does as PLUS does, over real sockets."""

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from appliance.context import Context
from appliance.frames import End, Frame, Scan
from appliance.igtl import Image, Message, QuaternionData, QuaternionTool, Tool, TrackingData, Transform, encode
from appliance.igtl.rigid import rigid_fault
from appliance.igtl.tracking import TOOL_3D
from appliance.simulate import ultrasound as plus
from appliance.ultrasound import phantom
from appliance.ultrasound.place_image import calibration
from operators.sources import openigtlink
from tests.appliance.ultrasound.test_match_poses import CALIBRATION

SPINE = Path(__file__).parents[3] / "../shared/data/us_tracked/TestImages/SpinePhantomFreehand.igs.mha"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
WAIT_S = 20.0
TRACKED = {
    "probe": "ProbeToTracker",
    "reference": "ReferenceToTracker",
    "tools": {"Stylus": "StylusToTracker"},
    "image_to_probe": phantom.IMAGE_TO_PROBE.ravel().tolist(),
    "wait_ms": 200,
    "max_skew_ms": 1000,
    "max_late_ms": 10_000,
}


class Appliance:
    """A running source that collects what it emits, and its server."""

    def __init__(self, **settings):
        self.messages, self.alarms = [], {}
        self.server = plus.UltrasoundServer(0)
        self.hold = threading.Event()
        self.hold.set()
        self.source = openigtlink.make(
            openigtlink.Settings(host="127.0.0.1", port=self.server.port, **settings),
            Context("or_live", Path(), Path(), alarm=self.alarms.__setitem__),
        )
        self.thread = threading.Thread(target=self.source.run, args=(self.emit,), daemon=True)
        self.thread.start()
        assert self.server.connected.wait(WAIT_S)

    def emit(self, message):
        assert self.hold.wait(WAIT_S)
        self.messages.append(message)

    def of(self, kind):
        return [message for message in list(self.messages) if isinstance(message, kind)]

    def until(self, true):
        deadline = time.monotonic() + WAIT_S
        while not true():
            assert time.monotonic() < deadline, self.source.status()
            time.sleep(0.005)

    def send(self, *messages):
        self.server.send(b"".join(map(encode, messages)))

    def show(self, picture=None, **changes):
        """Send one picture as PLUS does and return the frame it becomes."""
        n = len(self.of(Frame))
        self.send(*plus.messages(picture or phantom.picture(0.1 * n), time.time_ns(), **changes))
        self.until(lambda: len(self.of(Frame)) > n)
        return self.of(Frame)[-1]

    def stop(self):
        self.source.stop()
        self.thread.join(WAIT_S)


@pytest.fixture
def start():
    running = []

    def begin(**settings):
        running.append(Appliance(**settings))
        return running[-1]

    yield begin
    for one in running:
        one.stop()
        one.server.close()


def image(array, name="Image_Image", affine=LPS, time_ns=None):
    return Message(Image(array, affine), name, time.time_ns() if time_ns is None else time_ns)


def test_each_real_frame_is_where_the_file_says(start):
    if not SPINE.exists():
        pytest.skip(f"{SPINE} is absent")
    sequence = plus.read_metaimage(SPINE.read_bytes())
    to_probe = calibration([float(number) for number in CALIBRATION.split()])
    appliance = start(**{**TRACKED, "image_to_probe": [float(number) for number in CALIBRATION.split()]})
    for n, picture in enumerate(itertools.islice(plus.file_pictures(SPINE), len(sequence.array))):
        frame = appliance.show(picture)
        np.testing.assert_array_equal(frame.array, sequence.array[n])
        assert frame.array.dtype == np.float32 and not frame.array.flags.writeable
        probe, reference, stylus = (
            sequence.transform(n, f"{tool}ToTracker") for tool in ("Probe", "Reference", "Stylus")
        )
        to_reference = np.linalg.inv(reference)
        expected = LPS @ to_reference @ probe @ to_probe
        np.testing.assert_allclose(frame.affine[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-4)
        np.testing.assert_allclose(frame.tracking.tools["Stylus"], LPS @ to_reference @ stylus @ LPS, atol=1e-4)
        assert rigid_fault(frame.tracking.image_to_reference) == "" and frame.marks == ()
    (scan,) = appliance.of(Scan)
    assert (scan.modality, scan.axes, scan.shape) == ("US", ("y", "x"), (616, 820))
    assert [frame.sequence for frame in appliance.of(Frame)] == list(range(21))


def test_a_tool_that_is_not_seen_places_no_image_and_says_so(start):
    appliance = start(**TRACKED)
    assert appliance.show().tracking.image_to_reference is not None
    lost = appliance.show(missing=True)
    assert lost.tracking.image_to_reference is None and lost.tracking.tools == {}
    assert lost.tracking.reason == "ProbeToTracker: the identity, which stands for not seen"
    assert [(mark.stage, mark.reason) for mark in lost.marks] == [("tracking", lost.tracking.reason)]
    np.testing.assert_allclose(lost.affine, np.diag([0.2, 0.2, 0.2, 1]), atol=1e-12)
    assert appliance.show().marks == ()
    assert appliance.source.status()["frames_without_place"] == 1


def test_poses_whose_clock_is_another_are_refused(start):
    appliance = start(**{**TRACKED, "max_skew_ms": 50})
    frames = [appliance.show(skew_ns=3_600_000_000_000) for _ in range(3)]
    for frame in frames[1:]:
        assert frame.tracking.image_to_reference is None
        assert "later than poses, the limit is 50 ms" in frame.marks[0].reason


@pytest.mark.parametrize("bad", [np.full((4, 4), np.nan), np.diag([1, 1, 2.0, 1])])
def test_no_pose_that_is_none_goes_on(start, bad):
    appliance = start(**TRACKED)
    picture = phantom.picture(0.0)
    wrong = phantom.TrackedPicture(picture.array, {**picture.transforms, "StylusToTracker": bad})
    frame = appliance.show(wrong)
    assert frame.tracking.image_to_reference is not None and frame.tracking.tools == {}
    wrong = phantom.TrackedPicture(picture.array, {**picture.transforms, "ReferenceToTracker": bad})
    frame = appliance.show(wrong)
    assert frame.tracking.image_to_reference is None and frame.tracking.tools == {}


def test_what_the_sender_says_of_a_pose_counts(start):
    appliance = start(**TRACKED)
    now_ns, picture = time.time_ns(), phantom.picture(0)
    said = {"TransformStatus": "MISSING"}
    poses = [Message(Transform(m), name, now_ns, 2, said) for name, m in picture.transforms.items()]
    appliance.send(image(picture.array[None], time_ns=now_ns), *poses)
    appliance.until(lambda: appliance.of(Frame))
    assert appliance.of(Frame)[0].tracking.reason == "ProbeToTracker: its sender says MISSING"


def test_a_picture_that_the_calibration_is_not_for_has_no_place(start):
    """The depth was changed: the same probe, other pixels."""
    appliance = start(**TRACKED, image_px=[300, 256])
    picture = phantom.picture(0.3)
    assert appliance.show(picture).tracking.image_to_reference is not None
    smaller = phantom.TrackedPicture(picture.array[:200], picture.transforms)
    frame = appliance.show(smaller)
    assert frame.tracking.reason == "the picture has 300 x 200 pixels, the calibration is for (300, 256)"
    for pixel_mm, placed in [(0.2, True), (0.15, False), (1.0, True)]:
        n, now_ns = len(appliance.of(Frame)), time.time_ns()
        poses = [Message(Transform(m), name, now_ns) for name, m in picture.transforms.items()]
        sized = LPS @ np.diag([pixel_mm, pixel_mm, 1, 1])
        appliance.send(image(picture.array[None], affine=sized, time_ns=now_ns), *poses)
        appliance.until(lambda n=n: len(appliance.of(Frame)) > n)
        frame = appliance.of(Frame)[-1]
        assert (frame.tracking.image_to_reference is not None) == placed
    told = [mark.reason for frame in appliance.of(Frame) for mark in frame.marks]
    assert "0.150 x 0.150 mm and 0.200 x 0.200 mm; calibrate for this depth" in told[-1]


def as_tdata(picture, time_ns):
    tools = tuple(Tool(name, matrix) for name, matrix in picture.transforms.items())
    return Message(TrackingData(tools), "Tracker", time_ns)


def as_qtdata(picture, time_ns):
    tools = []
    for name, matrix in picture.transforms.items():
        tools.append(QuaternionTool(name, matrix[:3, 3], Rotation.from_matrix(matrix[:3, :3]).as_quat()))
    return Message(QuaternionData(tuple(tools)), "Tracker", time_ns)


@pytest.mark.parametrize("as_data", [as_tdata, as_qtdata])
def test_a_tracker_of_its_own_sends_tracking_data(start, as_data):
    tracker = plus.UltrasoundServer(0)
    appliance = start(**TRACKED, tracker_host="127.0.0.1", tracker_port=tracker.port)
    assert tracker.connected.wait(WAIT_S)
    picture, now_ns = phantom.picture(0.7), time.time_ns()
    tracker.send(encode(as_data(picture, now_ns)))
    appliance.until(lambda: appliance.source.status()["connections"]["tracker"]["messages"] == 1)
    appliance.send(image(picture.array[None], time_ns=now_ns))
    appliance.until(lambda: appliance.of(Frame))
    frame = appliance.of(Frame)[0]
    expected = LPS @ phantom.probe_to_reference(0.7) @ phantom.IMAGE_TO_PROBE
    np.testing.assert_allclose(frame.affine[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-4)
    assert set(frame.tracking.tools) == {"Stylus"}
    tracker.close()


def test_tools_without_an_orientation_and_quaternions_of_no_length_are_no_poses(start):
    appliance = start(**{**TRACKED, "wait_ms": 50})
    picture, now_ns = phantom.picture(0.7), time.time_ns()
    poses = picture.transforms
    tip = Tool("ProbeToTracker", poses["ProbeToTracker"], kind=TOOL_3D)
    whole = Tool("ReferenceToTracker", poses["ReferenceToTracker"])
    flat = QuaternionTool("StylusToTracker", np.zeros(3), np.zeros(4))
    data = TrackingData((tip, whole)), QuaternionData((flat,))
    appliance.send(*(Message(each, "Tracker", now_ns) for each in data), image(picture.array[None], time_ns=now_ns))
    appliance.until(lambda: appliance.of(Frame))
    frame = appliance.of(Frame)[0]
    assert frame.tracking.reason == "ProbeToTracker: it has a tip and no orientation" and frame.tracking.tools == {}


def test_video_that_is_not_tracked_is_a_plain_clip(start):
    appliance = start()
    sized = LPS @ np.array([[0, 0.1, 0, 5], [0.3, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]])
    appliance.send(image(np.full((1, 20, 30), 7, np.uint16), "Video", sized, time_ns=0))
    appliance.until(lambda: appliance.of(Frame))
    (frame,) = appliance.of(Frame)
    assert frame.tracking is None and frame.marks == () and (frame.array == 7).all()
    np.testing.assert_allclose(frame.affine, np.diag([0.3, 0.1, np.sqrt(0.03), 1]), atol=1e-6)
    assert abs(frame.acquired_ns - time.time_ns()) < 60e9 and frame.received_ns <= time.monotonic_ns()


def test_images_that_bring_their_place(start):
    appliance = start(placed=True, image="Image_Reference")
    to_reference = LPS @ phantom.probe_to_reference(1.0) @ phantom.IMAGE_TO_PROBE
    picture = np.zeros((1, 8, 9), np.uint8)
    sheared = to_reference.copy()
    sheared[:3, 1] = sheared[:3, 0]
    not_seen = LPS.copy()
    not_seen[:3, 3] = 0
    for n, affine in enumerate((to_reference, not_seen, sheared)):
        appliance.send(image(picture, "Other", affine), image(picture, "Image_Reference", affine))
        appliance.until(lambda n=n: len(appliance.of(Frame)) > n)
    good, unseen, flat = appliance.of(Frame)
    np.testing.assert_allclose(good.affine[:, [0, 1, 3]], to_reference[:, [0, 1, 3]], atol=1e-4)
    assert rigid_fault(good.tracking.image_to_reference) == "" and good.marks == ()
    assert unseen.tracking.reason == "the image's own: the identity, which stands for not seen"
    assert flat.tracking.reason.endswith("no length or the same direction")
    for frame in (unseen, flat):
        assert frame.tracking.image_to_reference is None and frame.marks[0].stage == "tracking"
    assert appliance.source.status()["other_images"] == ["Other"]


def test_colour_is_shown_in_grey_and_said(start):
    appliance = start()
    grey = np.repeat(np.arange(200, dtype=np.uint8).reshape(1, 10, 20, 1), 3, axis=3)
    doppler = grey.copy()
    doppler[0, 2:5, 3:9] = (200, 30, 0)
    for n, array in enumerate((grey, doppler)):
        appliance.send(image(array))
        appliance.until(lambda n=n: len(appliance.of(Frame)) > n)
    first, second = appliance.of(Frame)
    np.testing.assert_allclose(first.array, grey[0, ..., 0], atol=1e-3)
    assert first.marks == ()
    assert second.marks[0].reason == "9.0 % of the picture is coloured and shown in grey"


def test_what_is_no_picture_is_refused_with_an_alarm(start):
    appliance = start()
    appliance.send(image(np.zeros((3, 8, 8), np.uint8)))
    appliance.until(lambda: appliance.source.status()["refused_images"] == 1)
    expected = "openigtlink source: a volume of 3 planes; pictures of one plane are taken"
    appliance.until(lambda: appliance.alarms.get("openigtlink images") == expected)
    appliance.show()
    assert appliance.alarms["openigtlink images"] == "" and len(appliance.of(Scan)) == 1


def test_a_lost_connection_ends_the_clip_and_the_next_begins_when_it_is_back(start):
    appliance = start()
    appliance.show()
    appliance.server.hang_up()
    appliance.until(lambda: appliance.of(End))
    assert "hung up" in appliance.alarms["openigtlink server"]
    assert appliance.server.connected.wait(WAIT_S)
    appliance.until(lambda: appliance.alarms["openigtlink server"] == "")
    appliance.show()
    first, second = appliance.of(Scan)
    (end,) = appliance.of(End)
    assert (end.scan_id, end.status, end.n_frames) == (first.scan_id, "aborted", 1) and "lost" in end.reason
    assert second.scan_id != first.scan_id and [frame.sequence for frame in appliance.of(Frame)] == [0, 0]


def test_a_clip_ends_by_silence_by_another_size_and_by_the_stop(start):
    appliance = start(silence_s=0.3)
    appliance.show()
    appliance.until(lambda: appliance.of(End))
    appliance.show(phantom.picture(0, (40, 50)))
    appliance.show(phantom.picture(0, (50, 40)))
    appliance.stop()
    ends = [(end.status, end.reason) for end in appliance.of(End)]
    assert ends[0] == ("complete", "no image for 0.3 s")
    assert ("complete", "the picture's size changed to (50, 40)") in ends
    assert len(ends) == len(appliance.of(Scan))


def test_the_newest_image_wins_and_what_is_left_out_is_counted(start):
    appliance = start()
    appliance.hold.clear()
    for n in range(60):
        appliance.send(image(np.full((1, 8, 8), n, np.uint8)))
    appliance.until(lambda: appliance.source.status()["received"] == 60)
    appliance.hold.set()
    appliance.until(lambda: appliance.of(Frame) and appliance.of(Frame)[-1].array[0, 0] == 59)
    status = appliance.source.status()
    assert status["left_out"] + len(appliance.of(Frame)) == 60 and len(appliance.of(Frame)) <= 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"probe": "ProbeToTracker"}, "`probe` and `image_to_probe` go together"),
        ({"reference": "ReferenceToTracker"}, "`reference` and `tools` need both"),
        ({**TRACKED, "placed": True}, "placed images need no poses"),
        ({**TRACKED, "image_to_probe": [1.0] * 11}, "11 numbers; a calibration has 12"),
        ({**TRACKED, "image_to_probe": [0.0] * 12}, "no length or the same direction"),
        ({**TRACKED, "image_px": [640, -480]}, "image_px .* is not two sizes, of x and y"),
        ({"pixel_mm": [0.2]}, "is not two sizes, of x and y"),
        ({"pixel_mm": [0.2, -0.2]}, "is not two sizes, of x and y"),
    ],
)
def test_settings_that_cannot_be_are_told(settings, words):
    with pytest.raises(ValidationError, match=words):
        openigtlink.Settings(host="x", **settings)
