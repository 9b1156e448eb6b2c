# SPDX-License-Identifier: Apache-2.0
"""The live path's service class: a stage that fails or is late never stops an image, and says so on it."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from appliance.errors import ModelError, StageError
from appliance.frames import End, Frame, Mark, Scan, read_only
from operators import OperatorSettings
from operators.runners import Activity, Feed, SinkRunner, StageRunner

SCAN = Scan("s1", "MR", ("y", "x"), (2, 2), "float32", 0)
KSPACE_SCAN = replace(SCAN, axes=("coil", "ky", "kx"), shape=(1, 2, 2), dtype="complex64")


def image(sequence=0, age_s=0.0, **changes):
    frame = Frame(
        scan_id="s1",
        sequence=sequence,
        array=read_only(np.full((2, 2), sequence, np.float32)),
        axes=("y", "x"),
        affine=np.eye(4),
        acquired_ns=0,
        received_ns=time.monotonic_ns() - int(age_s * 1e9),
    )
    return replace(frame, **changes)


def kspace(sequence=0, **changes):
    return image(sequence, array=read_only(np.ones((1, 2, 2), np.complex64)), axes=("coil", "ky", "kx"), **changes)


class Double:
    """A stage that doubles the image; `broken` frames raise."""

    broken = frozenset()

    def begin(self, scan):
        return scan

    def frame(self, frame):
        if frame.sequence in self.broken:
            raise StageError(f"double: frame {frame.sequence} is odd", frame.scan_id)
        return replace(frame, array=frame.array * 2)

    def end(self):
        return []

    def status(self):
        return {"factor": 2}


def runner(make=Double, alarms=None, **settings):
    def alarm(key, text):
        if alarms is not None:
            alarms[key] = text

    return StageRunner("double", make, OperatorSettings(), alarm, **settings)


def test_a_stage_adds_provenance_and_keeps_the_original():
    stage = runner()
    frame = image(3)
    assert stage.process(SCAN) == [SCAN]
    (out,) = stage.process(frame)
    assert (out.array == 6).all()
    assert out.original is frame.array
    assert [applied.operator for applied in out.provenance] == ["double"]
    assert not out.marks
    (again,) = stage.process(image(5, original=frame.array))
    assert again.original is frame.array  # the first one, not the last


def test_a_failing_stage_passes_the_original_through_marked_and_raises_an_alarm():
    class Odd(Double):
        broken = frozenset({1})

    alarms = {}
    stage = runner(Odd, alarms)
    stage.process(SCAN)
    frames = [image(0), image(1), image(2)]
    outs = [stage.process(frame)[0] for frame in frames]
    assert [out.marks for out in outs] == [(), (Mark("double", "double: frame 1 is odd"),), ()]
    assert outs[1].array is frames[1].array
    assert not outs[1].provenance
    assert alarms["stage double"] == "frame 1: double: frame 1 is odd"
    assert stage.status()["passed_through"] == 1
    assert stage.process(End("s1", "complete")) == [End("s1", "complete")]


def test_the_same_failure_is_told_once_not_for_every_frame(caplog):
    class Always(Double):
        def frame(self, frame):
            raise ValueError("no")

    stage = runner(Always)
    stage.process(SCAN)
    for n in range(50):
        stage.process(image(n))
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage() == "stage double: frame 0: no"


def test_a_stage_that_cannot_be_made_is_bypassed_and_tried_again_for_the_next_scan():
    makes = iter([ModelError("m.onnx: missing"), ModelError("m.onnx: missing"), None])

    def make():
        error = next(makes)
        if error:
            raise error
        return Double()

    alarms = {}
    stage = runner(make, alarms)
    stage.warm_up()
    assert alarms["stage double"] == "cannot start: m.onnx: missing"
    stage.process(SCAN)
    (out,) = stage.process(image())
    assert out.marks == (Mark("double", "m.onnx: missing"),)
    stage.process(End("s1", "complete"))
    stage.process(SCAN)
    assert stage.process(image(1))[0].marks == ()
    assert alarms["stage double"] == ""


def test_a_stage_that_refuses_the_scan_is_bypassed():
    class Picky(Double):
        def begin(self, scan):
            raise StageError("double: expected axes (z, y, x), got ('y', 'x'); collect slices before it", scan.scan_id)

    stage = runner(Picky)
    stage.process(SCAN)
    (out,) = stage.process(image())
    assert "collect slices" in out.marks[0].reason


def test_a_late_image_skips_the_stage_and_is_marked_but_kspace_never_skips_reconstruction():
    stage = runner(deadline_ns=100_000_000)
    stage.process(SCAN)
    (late,) = stage.process(image(age_s=0.3))
    assert late.marks[0].stage == "double"
    assert late.marks[0].reason.startswith("skipped, frame was 3")
    assert stage.status()["deadline_misses"] == 1
    reconstruction = runner(deadline_ns=100_000_000)
    reconstruction.process(KSPACE_SCAN)
    (out,) = reconstruction.process(kspace(received_ns=0))
    assert not out.marks


def test_kspace_that_cannot_be_reconstructed_takes_the_fallback_or_makes_the_scan_incomplete():
    class NoImage(Double):
        def frame(self, frame):
            raise StageError("double: singular", frame.scan_id)

    class Fallback(NoImage):
        def fallback(self, frame):
            return replace(frame, array=np.zeros((2, 2), np.float32), axes=("y", "x"))

    stage = runner(Fallback)
    stage.process(KSPACE_SCAN)
    (out,) = stage.process(kspace())
    assert out.is_image
    assert out.marks == (Mark("double", "double: singular"),)
    assert out.provenance[0].operator == "double:fallback"

    stage = runner(NoImage)
    stage.process(KSPACE_SCAN)
    assert stage.process(kspace()) == []
    (end,) = stage.process(End("s1", "complete", n_frames=1))
    assert end.status == "incomplete"
    assert end.reason == "double gave no image for 1 frames: double: singular"


def test_noise_and_calibration_frames_go_to_prepare_and_on():
    class Prepared(Double):
        seen = ()

        def prepare(self, frame):
            Prepared.seen = (*Prepared.seen, frame.role)

    stage = runner(Prepared)
    stage.process(KSPACE_SCAN)
    noise = kspace(-1, role="noise")
    assert stage.process(noise) == [noise]
    assert Prepared.seen == ("noise",)
    assert stage.status()["frames"] == 0


def test_interleaved_scans_have_their_own_stage():
    class Counting(Double):
        def __init__(self):
            self.n = 0

        def frame(self, frame):
            self.n += 1
            return replace(frame, array=np.full((2, 2), self.n))

    stage = runner(Counting)
    for scan_id in ("s1", "s2"):
        stage.process(replace(SCAN, scan_id=scan_id))
    counts = [stage.process(image(scan_id=s))[0].array[0, 0] for s in ("s1", "s2", "s1", "s2")]
    assert counts == [1, 1, 2, 2]


def test_a_collecting_stage_answers_at_the_end():
    class Last(Double):
        kept = None

        def frame(self, frame):
            self.kept = frame

        def end(self):
            return [self.kept]

    stage = runner(Last)
    stage.process(SCAN)
    assert stage.process(image(0)) == []
    assert stage.process(image(1)) == []
    frame, end = stage.process(End("s1", "complete"))
    assert frame.sequence == 1
    assert end == End("s1", "complete")


class Collect:
    def __init__(self):
        self.got = []

    def begin(self, scan):
        self.got.append(scan)

    def frame(self, frame):
        if frame.sequence == 1:
            raise OSError("display gone")
        self.got.append(frame.sequence)

    def end(self, end):
        self.got.append(end)

    def status(self):
        return {"got": len(self.got)}


def test_a_sink_that_raises_loses_only_that_message_and_says_so():
    alarms = {}
    sink = Collect()
    run = SinkRunner("collect", sink, alarms.__setitem__)
    for message in (SCAN, image(0), image(1), image(2), kspace(-1, role="noise"), kspace(3), End("s1", "complete")):
        run.process(message)
    assert sink.got == [SCAN, 0, 2, End("s1", "complete")]  # neither noise nor k-space
    assert alarms == {"sink collect": "display gone"}
    assert run.status()["errors"] == 1


def test_the_feed_makes_the_source_wait_for_a_durable_sink_and_loses_nothing():
    feed = Feed(2)
    behind = threading.Event()
    behind.set()
    feed.backlogs = [lambda: 1.0 if behind.is_set() else 0.0]
    put = threading.Thread(target=lambda: [feed.put(image(n)) for n in range(5)])
    put.start()
    put.join(0.1)
    assert put.is_alive()
    assert len(feed) == 0
    behind.clear()
    taken = []
    while len(taken) < 5:
        message = feed.take()
        taken += [message.sequence] if message else []
    put.join()
    assert taken == [0, 1, 2, 3, 4]
    assert feed.n_frames_in == 5
    feed.close()
    assert feed.finished


def test_a_stuck_operator_is_named():
    activity = Activity()
    assert activity.stuck(0) == ""
    activity.enter("denoise")
    assert activity.stuck(0).startswith("denoise computing for")
    assert activity.stuck(60) == ""
    activity.leave()
    assert activity.stuck(0) == ""


@pytest.mark.parametrize("n", [1, 7, 20_000])
def test_latency_percentiles_agree_with_numpy_over_the_newest_samples(n):
    from appliance.latency import N_SAMPLES, Latency

    latency = Latency()
    assert latency.summary_ms() == {}
    durations_ms = np.random.default_rng(n).uniform(1, 9, n)
    for duration_ms in durations_ms:
        latency.add_ns(int(duration_ms * 1e6))
    newest = durations_ms[-N_SAMPLES:]
    summary = latency.summary_ms()
    assert summary["p99"] == pytest.approx(np.percentile(newest, 99, method="inverted_cdf"), abs=2e-3)
    assert summary["p50"] == pytest.approx(np.percentile(newest, 50, method="inverted_cdf"), abs=2e-3)
    assert summary["max"] == pytest.approx(newest.max(), abs=2e-3)


def test_a_message_of_a_scan_that_never_began_is_passed_on_and_ends_nothing():
    stage = runner()
    end = End("lost", "aborted", "the sender's socket broke")
    assert stage.process(end) == [end]


def test_a_stage_that_only_looks_is_told_apart_in_the_provenance():
    class Look(Double):
        def frame(self, frame):
            return replace(frame, findings=())

    for make, altered in ((Double, True), (Look, False)):
        stage = runner(make)
        stage.process(SCAN)
        assert [applied.altered for applied in stage.process(image())[0].provenance] == [altered]
