# SPDX-License-Identifier: Apache-2.0
"""The preview sink, read back from the live bus."""

import time

import numpy as np
import pytest

from appliance.bus import Subscriber
from appliance.context import Context
from appliance.frames import Applied, End, Finding, Frame, Mark, Scan
from operators.sinks.preview import Settings, make

PATIENCE_S = 20


class Bench:
    def __init__(self, run_dir, **settings):
        self.sink = make(Settings(**settings), Context("mri", run_dir, run_dir))
        self.subscriber = Subscriber(run_dir, [("pipeline-mri", "preview")])

    def wait_for(self, wanted):
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            got = self.subscriber.receive(0.5)
            if got and wanted(got[2]):
                return got[2], got[3]
        raise AssertionError("it never came")

    def show(self, frame):
        """Return the preview of `frame`. The bus may drop one of two messages less than a millisecond apart."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            self.sink.frame(frame)
            got = self.subscriber.receive(0.2)
            if got and got[2].get("sequence") == frame.sequence:
                return got[2], got[3]
        raise AssertionError("it never came")

    def state(self, state):
        return self.wait_for(lambda header: header["state"] == state)[0]

    def close(self):
        self.sink.close()
        self.subscriber.close()


@pytest.fixture
def bench(tmp_path, request):
    bench = Bench(tmp_path, **getattr(request, "param", {}))
    bench.state("idle")  # so the bus is connected
    yield bench
    bench.close()


def scan(scan_id="s1"):
    return Scan(scan_id, "MR", ("y", "x"), (4, 6), "float32", 0)


def frame(sequence=0, array=None, **kwargs):
    array = np.arange(24, dtype=np.float32).reshape(4, 6) if array is None else array
    kwargs = {"affine": np.diag([1.5, 2.5, 5, 1]), "received_ns": time.monotonic_ns(), **kwargs}
    axes = ("z", "y", "x")[-array.ndim :]
    return Frame(
        scan_id="s1", sequence=sequence, array=array, axes=axes, acquired_ns=1_700_000_000_000_000_000, **kwargs
    )


def test_a_preview_says_everything_a_page_shows(bench):
    bench.sink.begin(scan())
    spike = Finding("spike", "RF spike in line 81", "alarm", where={"line": 81})
    sent = frame(
        3,
        original=np.zeros((4, 6), np.float32),
        marks=(Mark("denoise", "late"),),
        findings=(spike,),
        provenance=(Applied("reconstruct", "1", "a"),),
    )
    header, pixels = bench.show(sent)
    assert 0 <= header.pop("age_ms") < PATIENCE_S * 1000
    low, high = header.pop("window")
    (recent,) = header.pop("recent_findings")
    assert (recent["message"], recent["where"], recent["scan_id"]) == ("RF spike in line 81", {"line": 81}, "s1")
    assert (recent["last_ns"], recent["sequence"]) == (sent.acquired_ns, 3)
    assert header == {
        "pipeline": "mri",
        "state": "live",
        "scan_id": "s1",
        "sequence": 3,
        "width": 6,
        "height": 4,
        "pixel_mm": [1.5, 2.5],
        "acquired_ns": sent.acquired_ns,
        "received_ns": sent.received_ns,
        "findings": [{"kind": "spike", "message": "RF spike in line 81", "severity": "alarm", "where": {"line": 81}}],
        "marks": [{"stage": "denoise", "reason": "late"}],
        "provenance": ["reconstruct"],
        "original": True,
    }
    after, before, removed = np.frombuffer(pixels, np.uint8).reshape(3, 4, 6)
    expected = np.clip((sent.array - low) / (high - low) * 255, 0, 255)
    assert np.abs(after - expected).max() <= 1
    assert not before.any()
    expected = np.clip(127.5 - 8 * 255 * sent.array / (high - low), 0, 255)  # taken away is bright, added is dark
    assert np.abs(removed - expected).max() <= 1


def test_of_a_volume_the_middle_slice_is_shown(bench):
    bench.sink.begin(scan())
    array = np.zeros((3, 4, 6), np.float32)
    array[1] = np.arange(24).reshape(4, 6)
    header, pixels = bench.show(frame(array=array))
    assert (header["original"], len(pixels)) == (False, 24)
    assert pixels[0] == 0
    assert pixels[-1] == 255


def test_an_original_of_another_size_is_left_out(bench):
    bench.sink.begin(scan())
    header, pixels = bench.show(frame(original=np.zeros((4, 5), np.float32)))
    assert (header["original"], len(pixels)) == (False, 24)


def test_the_page_is_told_how_the_scan_ended_again_and_again(bench):
    bench.sink.begin(scan())
    bench.show(frame())
    bench.sink.end(End("s1", "aborted", "the scanner hung up"))
    for _ in range(2):
        ended = {"pipeline": "mri", "state": "ended", "reason": "aborted, the scanner hung up", "recent_findings": []}
        assert bench.state("ended") == ended
    bench.sink.begin(scan())
    assert bench.show(frame(1))[0]["state"] == "live"


@pytest.mark.parametrize("bench", [{"max_rate_hz": 2}], indirect=True)
def test_newest_wins_and_findings_between_previews_are_kept(bench):
    bench.sink.begin(scan())
    for sequence in range(40):
        findings = [Finding("coil_drop", f"coil 3 lost at {sequence}", where={"coil": 3})] if sequence >= 10 else []
        if sequence == 11:
            findings.append(Finding("spike", "RF spike", "alarm"))
        bench.sink.frame(frame(sequence, findings=tuple(findings)))
        time.sleep(0.001)
    header, _ = bench.wait_for(lambda header: header["sequence"] == 39)
    assert header["findings"][0]["message"] == "coil 3 lost at 39"
    newest, between = header["recent_findings"]  # also what was found in an image that no preview showed
    assert (newest["message"], newest["count"], between["kind"]) == ("coil 3 lost at 39", 30, "spike")
    bench.sink.close()  # its counts are final
    status = bench.sink.status()
    assert status["left_out"] > 20
    assert status["published"] + status["left_out"] == 40
    found = {entry["kind"]: entry for entry in status["recent_findings"]}
    assert (found["coil_drop"]["count"], found["coil_drop"]["message"]) == (30, "coil 3 lost at 39")
    assert (found["spike"]["count"], found["spike"]["sequence"]) == (1, 11)


def test_a_fault_that_became_an_alarm_is_one_entry_and_stays_one(bench):
    bench.sink.begin(scan())
    for sequence, severity in enumerate(("warning", "alarm", "warning")):
        bench.sink.frame(
            frame(sequence, findings=(Finding("coil_drop", f"now {sequence}", severity, where={"coil": 3}),))
        )
    (found,) = bench.sink.status()["recent_findings"]
    assert (found["severity"], found["count"], found["message"]) == ("alarm", 3, "now 2")
