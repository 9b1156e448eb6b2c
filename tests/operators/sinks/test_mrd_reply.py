# SPDX-License-Identifier: Apache-2.0
"""Images back to a scanner that streams over a real socket, through the MRD source."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.context import Context
from appliance.errors import PeerError
from appliance.frames import End, Frame, Message, Scan
from appliance.mrd import messages as m
from appliance.mrd.header import encode_header_xml
from appliance.simulate.mri import ScannerResult, cine_encoding, cine_lines, stream_cine
from operators.sinks import mrd_reply
from operators.sources import mrd

RNG = np.random.default_rng(4)
KSPACE = RNG.standard_normal((2, 16, 24)).astype(np.float32).view(np.complex64)
WAIT_S = 20.0


def image_of(frame: Frame) -> Frame:
    """Stand-in for reconstruction: any image that depends on the frame."""
    brightness = 1.0 + 0.01 * frame.sequence
    image = np.linspace(0, brightness, 16 * 12, dtype=np.float32).reshape(16, 12)
    return replace(frame, array=image, axes=("y", "x"))


class Pipeline:
    """Source and sink joined by a plain function; `lose` names frames for which there is no image."""

    def __init__(self, sink_settings: dict[str, Any] | None = None, **source_settings: Any) -> None:
        self.alarms: dict[str, str] = {}
        self.ends: list[End] = []
        self.make_image = image_of
        self.lose: set[int] = set()
        self.context = Context("p", Path(), Path(), alarm=self.alarms.__setitem__)
        self.sink = mrd_reply.make(mrd_reply.Settings(**sink_settings or {}), self.context)
        self.source = mrd.make(mrd.Settings(port=0, bind="127.0.0.1", **source_settings), self.context)
        self.thread = threading.Thread(target=self.source.run, args=(self.emit,), daemon=True)
        self.thread.start()
        self.until(lambda: self.port > 0)

    @property
    def port(self) -> int:
        return self.source.status()["port"]

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def emit(self, message: Message) -> None:
        match message:
            case Scan():
                self.sink.begin(message)
            case Frame(sequence=sequence):
                if sequence not in self.lose:
                    self.sink.frame(self.make_image(message))
            case End():
                lost = bool(self.lose)
                end = replace(message, status="incomplete", reason="frame 1 has no image") if lost else message
                self.ends.append(end)
                self.sink.end(end)

    def cine(self, n: int, **options: Any) -> ScannerResult:
        frames = (KSPACE for _ in range(n))
        options = {"n_calibration_lines": 4, "frame_rate_hz": 0, "timeout_s": WAIT_S, **options}
        return stream_cine("127.0.0.1", self.port, frames, **options)

    def stop(self) -> None:
        self.source.stop()
        self.thread.join(WAIT_S)
        self.sink.close()
        assert not self.thread.is_alive()


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    running = Pipeline()
    yield running
    running.stop()


def test_every_image_comes_back_in_order_with_its_counters_then_close(pipeline: Pipeline) -> None:
    result = pipeline.cine(40)
    assert (result.texts, result.closed, result.error) == ([], True, "")
    assert [int(image.head["repetition"]) for image in result.images] == list(range(40))
    assert [int(image.head["image_index"]) for image in result.images] == list(range(1, 41))
    for n, image in enumerate(result.images):
        assert image.data.shape == (1, 1, 16, 12)
        assert image.data.dtype == np.uint16
        assert image.data.max() == round(8191 * (1 + 0.01 * n))
    assert result.images[3].meta["ImageProcessingHistory"] == ["nearscan"]
    assert len(result.sent_ns) == len(result.images)
    assert result.images == sorted(result.images, key=lambda image: image.received_ns)
    assert pipeline.sink.status() == {"scans": 1, "images_sent": 40, "given_up": 0}
    assert pipeline.sink.backlog() == 0
    assert not any(pipeline.alarms.values())


def test_float_images_come_back_exactly() -> None:
    running = Pipeline({"data_type": "float32", "series_suffix": "x"})
    result = running.cine(1)
    expected = np.linspace(0, 1, 16 * 12, dtype=np.float32).reshape(16, 12)
    assert np.array_equal(result.images[0].data[0, 0], expected)
    assert result.images[0].meta["SequenceDescriptionAdditional"] == ["x"]
    running.stop()


def test_two_scans_one_after_the_other_and_their_counts(pipeline: Pipeline) -> None:
    assert len(pipeline.cine(3).images) == 3
    assert len(pipeline.cine(2).images) == 2
    assert pipeline.sink.status() == {"scans": 2, "images_sent": 5, "given_up": 0}
    assert pipeline.context.replies == {}


def test_a_frame_without_an_image_is_told_by_text(pipeline: Pipeline) -> None:
    pipeline.lose = {1}
    result = pipeline.cine(3)
    assert [int(image.head["image_index"]) for image in result.images] == [1, 3]
    assert result.texts == ["nearscan: scan incomplete: frame 1 has no image"]
    assert result.closed


def test_marks_of_a_faulty_frame_are_in_its_comments_and_in_the_text(pipeline: Pipeline) -> None:
    result = pipeline.cine(2, faults={1: "nan-line"})
    assert "ImageComments" not in result.images[0].meta
    assert result.images[1].meta["ImageComments"] == ["mrd: line 4 with NaN or Inf left out"]
    assert result.texts == ["nearscan: scan incomplete: frame 1: line 4 with NaN or Inf left out"]


def test_a_broken_scan_gets_its_images_then_the_reason(pipeline: Pipeline) -> None:
    header = m.encode_header(encode_header_xml(cine_encoding(KSPACE.shape, 2)))
    lines = m.encode_acquisitions(*cine_lines(KSPACE, 0, 2, 4))
    with socket.create_connection(("127.0.0.1", pipeline.port), timeout=WAIT_S) as sock:
        sock.sendall(header + lines + b"\xff\xff")
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    assert answer.startswith(m.Id.IMAGE.to_bytes(2, "little"))
    assert answer.endswith(m.encode_text("nearscan: scan aborted: " + pipeline.ends[0].reason) + m.encode_close())
    assert pipeline.ends[0].reason.startswith("mrd: unknown message id 65535")


def test_a_scanner_that_does_not_read_is_given_up_and_the_scan_goes_on() -> None:
    running = Pipeline(send_timeout_s=0.3)
    running.make_image = lambda frame: replace(frame, array=np.ones((1024, 1024), np.float32), axes=("y", "x"))
    header = m.encode_header(encode_header_xml(cine_encoding(KSPACE.shape, 2)))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.settimeout(WAIT_S)
        sock.connect(("127.0.0.1", running.port))
        sock.sendall(header)
        for n in range(20):  # answers of 2 MiB each: more than any socket buffer holds
            sock.sendall(m.encode_acquisitions(*cine_lines(KSPACE, n, 2, 0)))
        sock.sendall(m.encode_close())
        running.until(lambda: running.ends)
        assert (running.ends[0].status, running.ends[0].n_frames) == ("complete", 20)
        running.until(lambda: any(running.alarms.values()))
    assert running.alarms["mrd_reply"].startswith("mrd: the scanner did not read ")
    assert "bytes within 0.3 s; images from number " in running.alarms["mrd_reply"]
    assert running.sink.status()["given_up"] == 1
    assert running.sink.status()["images_sent"] < 20
    assert running.sink.backlog() == 0  # it holds nothing up any more
    running.until(lambda: running.source.status()["sessions"] == 0)
    assert len(running.cine(2).images) == 2
    running.stop()


class DeafReply:
    """A way back that blocks until told otherwise."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.sent: list[bytes] = []
        self.closed: list[tuple[str, str]] = []

    def send(self, data: bytes) -> None:
        assert self.release.wait(WAIT_S)
        self.sent.append(data)

    def close(self, status: str, reason: str) -> None:
        self.closed.append((status, reason))


def frame(sequence: int) -> Frame:
    return Frame(
        scan_id="s",
        sequence=sequence,
        array=np.ones((4, 4), np.float32),
        axes=("y", "x"),
        affine=np.eye(4),
        acquired_ns=0,
        received_ns=0,
    )


SCAN = Scan("s", "MR", ("y", "x"), (4, 4), "float32", 0)


def test_the_graph_never_waits_and_the_backlog_tells_the_source_to() -> None:
    context, reply = Context("p", Path(), Path()), DeafReply()
    context.replies["s"] = reply
    sink = mrd_reply.make(mrd_reply.Settings(), context)
    assert context.reply_wanted.is_set()
    sink.begin(SCAN)
    for n in range(40):
        sink.frame(frame(n))
    sink.end(End("s", "complete"))
    assert sink.backlog() >= 1
    reply.release.set()
    sink.close()
    assert len(reply.sent) == 40
    assert reply.closed == [("complete", "")]
    assert sink.backlog() == 0


def test_a_scan_that_came_another_way_is_let_pass_with_an_alarm() -> None:
    alarms: dict[str, str] = {}
    sink = mrd_reply.make(mrd_reply.Settings(), Context("p", Path(), Path(), alarm=alarms.__setitem__))
    sink.begin(SCAN)
    sink.frame(frame(0))
    sink.end(End("s", "complete"))
    assert alarms == {"mrd_reply": "mrd_reply: this scan has no scanner to answer; use it with the mrd source"}
    assert sink.status() == {"scans": 0, "images_sent": 0, "given_up": 0}


def test_what_is_not_an_image_is_our_own_mistake() -> None:
    sink = mrd_reply.make(mrd_reply.Settings(), Context("p", Path(), Path()))
    with pytest.raises(ValueError, match="put reconstruct before it"):
        sink.frame(replace(frame(0), axes=("coil", "ky", "kx")))


def test_an_alarm_is_cleared_by_the_next_scan_that_can_be_answered() -> None:
    alarms: dict[str, str] = {}
    context = Context("p", Path(), Path(), alarm=alarms.__setitem__)
    sink = mrd_reply.make(mrd_reply.Settings(), context)
    sink.begin(SCAN)
    assert alarms["mrd_reply"]
    context.replies["t"] = DeafReply()
    sink.begin(replace(SCAN, scan_id="t"))
    assert alarms["mrd_reply"] == ""
    sink.end(End("t", "complete"))
    sink.close()


def test_a_scanner_that_is_gone_raises_nothing_into_the_graph() -> None:
    class Gone(DeafReply):
        def send(self, data: bytes) -> None:
            raise PeerError("mrd: the scanner hung up: Broken pipe")

    alarms: dict[str, str] = {}
    context, reply = Context("p", Path(), Path(), alarm=alarms.__setitem__), Gone()
    context.replies["s"] = reply
    sink = mrd_reply.make(mrd_reply.Settings(), context)
    sink.begin(SCAN)
    sink.frame(frame(0))
    sink.frame(frame(1))
    sink.end(End("s", "aborted", "mrd: the connection was lost"))
    sink.close()
    assert reply.closed == [("aborted", "mrd: the connection was lost; images from number 1 on were not sent")]
    assert alarms["mrd_reply"] == "mrd: the scanner hung up: Broken pipe; images from number 1 on were not sent"
