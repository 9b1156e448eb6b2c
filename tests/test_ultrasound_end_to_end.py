# SPDX-License-Identifier: Apache-2.0
"""Tracked ultrasound through a running appliance: a machine as PLUS is one, a display, a volume, a page's preview."""

import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_for

from appliance.bus import Subscriber
from appliance.igtl import Image
from appliance.imaging.metaimage import read_metaimage
from appliance.imaging.volume_message import TOPIC, unpack
from appliance.inference.card import shipped_models
from appliance.live.igtl_client import Client
from appliance.simulate.site import Site
from appliance.simulate.ultrasound import UltrasoundServer, file_pictures, stream
from appliance.ultrasound.place_image import calibration
from tests.appliance.ultrasound.test_match_poses import CALIBRATION

SPINE = Path(__file__).parents[1] / "../shared/data/us_tracked/TestImages/SpinePhantomFreehand.igs.mha"
PLUS_VOLUME = SPINE.with_name("SpinePhantomFreehandReconstructed.mha")
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
N_FRAMES, RATE_HZ = 25, 6.0
NUMBERS = CALIBRATION.split()

SITE = f"""\
site: {{name: room, data_dir: $data_dir, run_dir: $run_dir, device: cpu}}
models: {{dir: MODELS}}
pipelines:
  or-live:
    source:
      openigtlink:
        host: 127.0.0.1
        port: PLUS_PORT
        probe: ProbeToTracker
        reference: ReferenceToTracker
        tools: {{Stylus: StylusToTracker}}
        image_to_probe: [{", ".join(NUMBERS)}]
        wait_ms: 200
        max_skew_ms: 1000 # timing decides no test
        silence_s: 2
    stages:
      - denoise: {{model: us-despeckle}}
      - detect_anomalies
    sinks:
      - openigtlink: {{port: $display, protocol: 3}}
      - volume: {{max_rate_hz: 2}}
      - preview
    deadline_ms: 0
buffer: {{reserve_gb: 0}}
"""


class Room:
    """A running appliance between a machine and a display that notes each IMAGE."""

    def __init__(self, folder):
        self.machine = UltrasoundServer(0)
        models = shutil.copytree(shipped_models(), folder / "models")
        card = models / "us-despeckle.yaml"  # no machine is too slow for it: timing decides no test
        card.write_text(re.sub("(?m)^deadline_ms: .*", "deadline_ms: 60000", card.read_text()))
        yaml = SITE.replace("PLUS_PORT", str(self.machine.port)).replace("MODELS", str(models))
        self.site = Site(folder, yaml, ports=("display",))
        self.images, self.poses = [], []

    def start(self):
        self.site.start()
        display = ("127.0.0.1", self.site.ports["display"])
        wanted = ("IMAGE", "TRANSFORM")
        self._display = Client(*display, on_message=self._note, on_state=lambda state: None, wanted=wanted)
        self._display.start()
        run_dir = self.site.settings.site.sockets
        self.volumes = Subscriber(run_dir, [("pipeline-or-live", TOPIC)])
        wait_for(self.machine.connected.is_set, "the appliance to connect")

    def _note(self, message, received_ns):
        (self.images if isinstance(message.content, Image) else self.poses).append(message)

    @property
    def status(self):
        return self.site.status.get("pipeline-or-live", {})

    def whole_volume(self, not_of=""):
        """The volume of a scan that has ended; not of that one."""
        found = []

        def complete():
            got = self.volumes.receive(0.1)
            found.extend([unpack(*got[2:])] if got else [])
            return found and found[-1].complete and found[-1].scan_id != not_of

        wait_for(complete, "the volume")
        return found[-1]

    def stop(self):
        self.site.stop()
        self._display.close()
        self.volumes.close()
        self.machine.close()


@pytest.fixture
def room(tmp_path):
    if not SPINE.exists():
        pytest.skip(f"{SPINE} is absent")
    room = Room(tmp_path)
    room.start()
    yield room
    room.stop()


def expected(sequence):
    """Where each frame of the file is, pixel index to LPS mm of the reference."""
    to_probe = calibration([float(number) for number in NUMBERS])
    for n in range(len(sequence.array)):
        probe, reference = (sequence.transform(n, f"{name}ToTracker") for name in ("Probe", "Reference"))
        yield LPS @ np.linalg.inv(reference) @ probe @ to_probe


def test_what_a_surgeon_sees_is_where_the_file_says_or_has_no_place(room):
    sequence = read_metaimage(SPINE.read_bytes())
    pictures = file_pictures(SPINE)
    sent = stream(room.machine, pictures, rate_hz=RATE_HZ, stop=threading.Event(), n_frames=N_FRAMES)
    assert sent == N_FRAMES
    volume = room.whole_volume()
    wait_for(lambda: room.status.get("source", {}).get("sessions") == 0, "the clip to end")
    source = room.status["source"]
    assert source["frames"] + source["left_out"] == N_FRAMES and source["frames_without_place"] == 0
    wait_for(lambda: len(room.images) >= source["frames"] - sum(d["dropped"] for d in displays(room)), "the images")
    assert len(room.images) > N_FRAMES // 2
    is_where_the_file_says(room, sequence)
    agrees_with_plus(volume)
    assert room.status["stages"]["detect_anomalies"]["frames"] == source["frames"]
    assert room.status["sinks"]["preview"]["published"] > 0
    is_not_placed_while_the_probe_is_not_seen(room, pictures, volume.scan_id)


def is_where_the_file_says(room, sequence):
    """Each image has the place of one frame of the file, and the picture and the stylus that belong to it."""
    where = np.stack(list(expected(sequence)))[:, :3, [0, 1, 3]]
    frames = [frame[::4, ::4].astype(np.float32).ravel() for frame in sequence.array]
    styluses = {message.time_ns: message for message in room.poses}
    for message in room.images:
        far = np.abs(message.content.affine[:3, [0, 1, 3]] - where).max(axis=(1, 2))
        n = int(np.argmin(far))
        assert far[n] < 1e-4 and message.device_name == "nearscan"
        stylus = styluses[message.time_ns]
        tip = np.linalg.inv(sequence.transform(n, "ReferenceToTracker")) @ sequence.transform(n, "StylusToTracker")
        assert stylus.device_name == "StylusToReference"
        np.testing.assert_allclose(stylus.content.matrix, tip, atol=1e-4)
        shown = message.content.array[0, ::4, ::4].astype(np.float32).ravel()
        alike = [np.corrcoef(shown, frame)[0, 1] for frame in frames]
        assert np.argmax(alike) == n and max(alike) > 0.95
        assert message.metadata["unprocessed"] == "" and "us-despeckle" in message.metadata["models"]


def is_not_placed_while_the_probe_is_not_seen(room, pictures, scan_id):
    room.images.clear()
    stream(room.machine, pictures, rate_hz=RATE_HZ, stop=threading.Event(), n_frames=12, missing_s=9.0)
    volume = room.whole_volume(not_of=scan_id)
    assert room.status["source"]["frames_without_place"] > 0
    assert any("frames are left out: without a place" in mark.reason for mark in volume.marks)
    unplaced = [m for m in room.images if "tracking" in m.metadata["unprocessed"]]
    assert unplaced
    for message in unplaced:
        assert message.device_name == "nearscan_untracked"
        assert "the identity, which stands for not seen" in message.metadata["unprocessed"]
        assert message.content.affine[:3, 3] == pytest.approx(0, abs=1e-3)
        sizes = np.diag([0.0854, 0.0788, 0.0821])
        np.testing.assert_allclose(np.abs(message.content.affine[:3, :3]), sizes, atol=3e-3)


def displays(room):
    return room.status["sinks"]["openigtlink"]["displays"]


def agrees_with_plus(volume):
    """PLUS's reconstruction of the same sweep, not despeckled, on another lattice: sampled where ours has voxels."""
    theirs = read_metaimage(PLUS_VOLUME.read_bytes())
    z, y, x = np.nonzero(volume.array)
    at = LPS[:3, :3] @ (volume.affine[:3, :3] @ np.stack([x, y, z]) + volume.affine[:3, 3:])
    index = np.round((at - np.array(theirs.offset_mm)[:, None]) / 0.5).astype(int)
    inside = ((index >= 0) & (index < np.array(theirs.array.shape[::-1])[:, None])).all(axis=0)
    grey = theirs.array[tuple(index[::-1, inside])].astype(float)
    ours = volume.array[z, y, x][inside].astype(float)
    both = grey > 0
    assert both.sum() > 300_000
    assert np.corrcoef(ours[both], grey[both])[0, 1] > 0.9
