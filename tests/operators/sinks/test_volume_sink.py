# SPDX-License-Identifier: Apache-2.0
"""The volume sink, read back from the live bus and by a display."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from appliance.bus import Subscriber
from appliance.context import Context
from appliance.errors import ConfigError
from appliance.frames import End, Frame, Mark, Scan, Tracking
from appliance.imaging.assembled import Assembled
from appliance.imaging.volume_message import TOPIC, unpack
from appliance.imaging.volume_of_scan import VolumeOfScan
from appliance.live.assemble_volumes import AssembleVolumes
from appliance.simulate.display import Display
from appliance.ultrasound import phantom
from operators.sinks.volume import Settings, make

PATIENCE_S = 20


class Bench:
    def __init__(self, run_dir, **settings):
        self.sink = make(Settings(**settings), Context("or", run_dir, run_dir))
        self.subscriber = Subscriber(run_dir, [("pipeline-or", TOPIC)])

    def wait_for(self, wanted):
        """Return the first volume that is `wanted`."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            got = self.subscriber.receive(0.5)
            if got and wanted(volume := unpack(*got[2:])):
                return volume
        raise AssertionError(f"it never came: {self.sink.status()}")

    def close(self):
        self.sink.close()
        self.subscriber.close()


@pytest.fixture
def start(tmp_path):
    running = []

    def begin(**settings):
        running.append(Bench(tmp_path, **settings))
        return running[-1]

    yield begin
    for bench in running:
        bench.close()


def scan(scan_id="s1", modality="US"):
    return Scan(scan_id, modality, ("y", "x"), (None, None), "float32", 0)


def frame(array, affine, tracking=None, scan_id="s1", **changes):
    return Frame(
        scan_id=scan_id, sequence=0, array=np.asarray(array, np.float32), axes=("y", "x"), affine=affine,
        acquired_ns=123, received_ns=456, tracking=tracking, **changes,
    )  # fmt: skip


def sweep(n_frames=8):
    for n in range(n_frames):
        pose = np.diag([-1.0, -1, 1, 1]) @ phantom.probe_to_reference(n / 10) @ phantom.IMAGE_TO_PROBE
        yield frame(phantom.picture(n / 10, (60, 80)).array, pose, Tracking(np.eye(4)))


def test_a_sweep_fills_a_volume_and_frames_without_a_place_do_not(start):
    bench = start(max_rate_hz=60)
    bench.sink.begin(scan())
    for each in sweep():
        bench.sink.frame(each)
        bench.sink.frame(replace(each, array=each.array * 0 + 255, tracking=Tracking(None, "not seen")))
    growing = bench.wait_for(lambda volume: not volume.complete)
    assert (growing.pipeline, growing.scan_id, growing.modality) == ("or", "s1", "US")
    assert (growing.acquired_ns, growing.received_ns, growing.value_range) == (123, 456, (0.0, 255.0))
    bench.sink.end(End("s1", "complete"))
    whole = bench.wait_for(lambda volume: volume.complete)
    assert whole.version > growing.version and whole.array.dtype == np.uint8 and whole.array.max() < 255
    z, y, x = np.nonzero(whole.array)
    points = whole.affine[:3, :3] @ np.stack([x, y, z]) + whole.affine[:3, 3:]
    truth = phantom.tissue(np.diag([-1.0, -1, 1]) @ points)  # the phantom is in RAS
    assert np.corrcoef(whole.array[z, y, x], truth)[0, 1] > 0.7, "with the holes that were filled"
    texts = [mark.reason for mark in whole.marks]
    assert "8 frames are left out: without a place" in texts
    assert any("filled between measured voxels" in text for text in texts)
    assert 0 < whole.filled < 1
    status = bench.sink.status()
    assert (status["assembled"], status["left_out"], status["behind"]) == (8, 8, 0)


def test_what_ended_is_repeated_for_who_comes_later(start):
    bench = start()
    bench.sink.begin(scan())
    for each in sweep(2):
        bench.sink.frame(each)
    bench.sink.end(End("s1", "complete"))
    first = bench.wait_for(lambda volume: volume.complete)
    again = bench.wait_for(lambda volume: True)
    assert again.version == first.version
    np.testing.assert_array_equal(again.array, first.array)


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_slices_are_stacked(start, modality):
    bench = start(max_rate_hz=60)
    bench.sink.begin(scan(modality=modality))
    images = np.random.default_rng(0).integers(0, 2000, (5, 12, 10))
    for n in (0, 2, 4, 1, 3):
        affine = np.diag([0.5, 0.5, 3, 1.0])
        affine[2, 3] = 3 * n
        marks = (Mark("denoise", "model failed"),) if n == 3 else ()
        bench.sink.frame(frame(images[n], affine, marks=marks))
    bench.sink.frame(frame(images[0], affine, scan_id="another"))
    bench.sink.end(End("s1", "complete"))
    whole = bench.wait_for(lambda volume: volume.complete)
    np.testing.assert_allclose(whole.array * whole.slope + whole.intercept, images, atol=0.5 * whole.slope)
    np.testing.assert_allclose(whole.affine, np.diag([0.5, 0.5, 3, 1]), atol=1e-9)
    assert whole.marks == (Mark("denoise", "model failed"),) and whole.array.dtype == np.int16
    assert (whole.slope == 1) == (modality == "CT")


def test_the_next_scan_takes_its_place(start):
    bench = start(max_rate_hz=60)
    for scan_id in ("s1", "s2"):
        bench.sink.begin(scan(scan_id))
        for each in sweep(3):
            bench.sink.frame(replace(each, scan_id=scan_id))
    assert bench.wait_for(lambda volume: volume.scan_id == "s2").version == 1


def test_displays_get_the_volume_where_it_is(start, free_port):
    bench = start(port=free_port, max_rate_hz=60, device_name="sweep")
    display = Display("127.0.0.1", free_port)
    bench.sink.begin(scan())
    for each in sweep(4):
        bench.sink.frame(each)
    bench.sink.end(End("s1", "complete"))
    whole = bench.wait_for(lambda volume: volume.complete)
    end = time.monotonic() + PATIENCE_S
    while not (display.shown.newest is not None and np.array_equal(display.shown.newest, whole.array)):
        assert time.monotonic() < end
        time.sleep(0.01)
    display.close()
    assert display.shown.statuses[0] == "VOLUME"


def test_an_address_that_is_taken_is_an_error(start, free_port, tmp_path):
    start(port=free_port)
    with pytest.raises(ConfigError, match="cannot listen"):
        make(Settings(port=free_port), Context("other", tmp_path, tmp_path))


@pytest.mark.parametrize("clip", [(1, 2, 3), (0, 0, 0, 5), (-1, 0, 5, 5)])
def test_a_rectangle_that_is_none_is_told(clip):
    with pytest.raises(ValidationError, match="is no rectangle"):
        Settings(clip_px=clip)


class Slow:
    """An assembler that waits for a sign."""

    def __init__(self):
        self.go, self.added = threading.Event(), []

    def add(self, frame):
        assert self.go.wait(PATIENCE_S)
        self.added.append(frame.sequence)
        return ""

    def assembled(self, *, complete):
        return Assembled(np.zeros((1, 1, 1), np.uint8), np.eye(4), (0, 1))


def test_frames_that_come_too_fast_are_left_out_counted_and_told():
    slow, published = Slow(), []
    volumes = AssembleVolumes(
        lambda scan: VolumeOfScan(scan, "or", slow, "volume"), published.append, max_rate_hz=1000, most_bytes=1000
    )
    volumes.put(scan())
    image = np.zeros((10, 10), np.float32)  # 400 bytes: two fit
    for n in range(10):
        volumes.put(replace(frame(image, np.eye(4)), sequence=n))
    volumes.put(End("s1", "complete"))
    slow.go.set()
    volumes.close()
    n_left_out = volumes.status()["behind"]
    assert slow.added[-1] == 9 and len(slow.added) + n_left_out == 10 and n_left_out >= 7
    last = published[-1]
    assert last.complete
    assert (
        Mark("volume", f"{n_left_out} frames are left out: they came faster than they can be assembled") in last.marks
    )
    with pytest.raises(RuntimeError, match="its thread has ended"):
        volumes.put(scan())
