# SPDX-License-Identifier: Apache-2.0
"""The MRD server over real sockets: good scans, broken ones, and that the next scan is always served."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from appliance.context import Context
from appliance.errors import ConfigError
from appliance.frames import End, Frame, Identity, Message, Scan
from appliance.mrd import messages as m
from appliance.mrd.header import encode_header_xml
from appliance.simulate.mri import (
    Scanner,
    ScannerResult,
    cine_encoding,
    cine_lines,
    stream_cine,
    stream_file,
)
from operators.sources import mrd

DATA = Path(__file__).parents[3] / "../shared/data/mrd"
SHAPE = (2, 16, 12)
RNG = np.random.default_rng(3)
KSPACE = RNG.standard_normal((*SHAPE[:2], 2 * SHAPE[2])).astype(np.float32).view(np.complex64)
HEADER = m.encode_header(encode_header_xml(cine_encoding(SHAPE, 2)))
START = m.encode_config_file("anything; import os") + HEADER
LINES = m.encode_acquisitions(*cine_lines(KSPACE, 0, 2, 4))
WAIT_S = 20.0


class Appliance:
    """A running source that collects what it emits."""

    def __init__(self, **settings: object) -> None:
        self.messages: list[Message] = []
        self.context = Context("mri_live", Path(), Path())
        self.source = mrd.make(mrd.Settings(port=0, bind="127.0.0.1", **settings), self.context)
        self.hold = threading.Event()
        self.hold.set()
        self.thread = threading.Thread(target=self.source.run, args=(self.emit,), daemon=True)
        self.thread.start()
        self.until(lambda: self.port > 0)

    @property
    def port(self) -> int:
        return self.source.status()["port"]

    def emit(self, message: Message) -> None:
        assert self.hold.wait(WAIT_S)
        self.messages.append(message)

    def until(self, condition: object) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def scanner(self) -> Scanner:
        return Scanner("127.0.0.1", self.port, WAIT_S)

    def session(self, *data: bytes) -> ScannerResult:
        """Send `data`, then read until the appliance hangs up."""
        scanner = self.scanner()
        for piece in data:
            scanner.send(piece)
        return scanner.wait()

    def cine(self, n: int = 2, **options: object) -> ScannerResult:
        return stream_cine(
            "127.0.0.1", self.port, [KSPACE] * n, n_calibration_lines=4, frame_rate_hz=0, timeout_s=WAIT_S, **options
        )

    def of(self, kind: type) -> list:
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def end(self) -> End:
        return self.of(End)[-1]

    def assert_serves_the_next_scan(self) -> None:
        n_before = len(self.messages)
        result = self.cine()
        assert (result.texts, result.closed, result.error) == ([], True, "")
        new = self.messages[n_before:]
        assert [type(message) for message in new] == [Scan, Frame, Frame, End]
        assert (new[-1].status, new[-1].reason, new[-1].n_frames) == ("complete", "", 2)

    def stop(self) -> None:
        self.hold.set()
        self.source.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        assert self.context.replies == {}


@pytest.fixture
def appliance() -> Iterator[Appliance]:
    running = Appliance()
    yield running
    running.stop()


@pytest.fixture
def impatient() -> Iterator[Appliance]:
    running = Appliance(idle_timeout_s=1.0)
    yield running
    running.stop()


def test_a_scan_becomes_scan_frames_end(appliance: Appliance) -> None:
    before_ns = (time.time_ns(), time.monotonic_ns())
    noise = RNG.standard_normal((2, 8)).astype(np.float32).view(np.complex64)
    result = appliance.cine(n_frames=2, noise=noise, identity=Identity(patient_id="17"))
    assert (result.texts, result.closed, result.error, len(result.sent_ns)) == ([], True, "", 2)
    scan, noise_frame, first, second, end = appliance.messages
    assert (scan.modality, scan.axes, scan.shape, scan.dtype) == (
        "MR",
        ("coil", "ky", "kx"),
        (2, None, 12),
        "complex64",
    )
    assert (scan.n_frames, scan.identity.patient_id, scan.encoding.n_coils) == (2, "17", 2)
    assert scan.attributes["config"] == "nearscan"
    assert scan.source.startswith("mrd 127.0.0.1:")
    assert scan.scan_id.startswith("mri-live-")
    assert scan.scan_id.replace("-", "").isalnum()
    assert (noise_frame.role, noise_frame.array.shape) == ("noise", (2, 4))
    assert np.array_equal(first.array, KSPACE[:, first.attachments["ky"]])
    assert first.attachments["ky"].tolist() == [0, 2, 4, 6, 7, 8, 9, 10, 12, 14]
    assert second.attachments["ky"].tolist() == list(range(0, 16, 2))
    assert (second.sequence, second.position.repetition) == (1, 1)
    assert before_ns[0] <= scan.started_ns <= first.acquired_ns <= second.acquired_ns <= time.time_ns()
    assert before_ns[1] <= first.received_ns <= second.received_ns <= time.monotonic_ns()
    assert (end.status, end.reason, end.n_frames) == ("complete", "", 2)
    assert {message.scan_id for message in appliance.messages} == {scan.scan_id}


@pytest.mark.parametrize("name", ["brain8ch_semireal_full", "brain8ch_semireal_R2_acs24"])
def test_a_real_file_arrives(appliance: Appliance, name: str) -> None:
    path = DATA / f"{name}.h5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    result = stream_file(path, "127.0.0.1", appliance.port, timeout_s=WAIT_S)
    assert (result.texts, result.closed, result.error) == ([], True, "")
    scan, frame, end = appliance.messages
    assert frame.array.shape == (8, 180 if "full" in name else 102, 230)
    assert (end.status, scan.n_frames) == ("complete", 1)


def test_images_arrive_as_images(appliance: Appliance) -> None:
    head = np.zeros(1, m.IMAGE_HEADER)[0]
    head["field_of_view"] = (100, 100, 5)
    pixels = RNG.random((1, 1, 6, 8)).astype(np.float32)
    spiral = START.replace(b"cartesian", b"spiral   ")
    result = appliance.session(spiral, m.encode_image(head, b"", pixels) * 2, m.encode_close())
    assert (result.texts, result.closed) == ([], True)
    scan, first, second, end = appliance.messages
    assert (scan.axes, scan.dtype) == (("y", "x"), "float32")
    assert np.array_equal(second.array, pixels[0, 0])
    assert (first.sequence, second.sequence, end.status) == (0, 1, "complete")


def test_two_scanners_at_once_are_kept_apart(appliance: Appliance) -> None:
    one, two = appliance.scanner(), appliance.scanner()
    half = LINES[: len(LINES) // 2 + 5]
    for scanner in (one, two):
        scanner.send(START + half)
    appliance.until(lambda: len(appliance.of(Scan)) == 2)
    for scanner in (two, one):
        scanner.send(LINES[len(half) :])
    results = [one.finish(), two.finish()]
    assert all((result.texts, result.closed) == ([], True) for result in results)
    assert len({scan.scan_id for scan in appliance.of(Scan)}) == 2
    assert {frame.scan_id for frame in appliance.of(Frame)} == {scan.scan_id for scan in appliance.of(Scan)}
    assert all(np.array_equal(frame.array, KSPACE[:, frame.attachments["ky"]]) for frame in appliance.of(Frame))
    assert [end.status for end in appliance.of(End)] == ["complete", "complete"]


def test_one_session_too_many_is_told_so() -> None:
    running = Appliance(max_sessions=1)
    first = running.scanner()
    first.send(START + LINES)
    running.until(lambda: running.of(Scan))
    second = running.session(START)
    assert second.texts == ["nearscan: 1 sessions are open already; try again later"]
    assert second.closed
    assert first.finish().closed
    assert running.source.status()["sessions_refused"] == 1
    running.until(lambda: running.source.status()["sessions"] == 0)
    running.assert_serves_the_next_scan()
    running.stop()


NOTHING_KEPT = [
    pytest.param(
        [struct.pack("<HI", 3, 2**32 - 1)],
        "mrd: HEADER of 4294967295 bytes announced; at most 16777216 are taken",
        id="4 GiB length",
    ),
    pytest.param([b"\xff" * 5000], "mrd: unknown message id 65535; this port takes MRD version 1", id="garbage"),
    pytest.param([b"yardl" + b"\0" * 500], "mrd: this is MRD version 2 (yardl)", id="mrd 2"),
    pytest.param([LINES], "mrd: ACQUISITION before HEADER; send CONFIG, then HEADER, then data", id="no header"),
    pytest.param([HEADER * 2], "mrd: second HEADER in one connection", id="two headers"),
    pytest.param(
        [START.replace(b"cartesian", b"radial   "), LINES],
        "mrd header: trajectory 'radial' is not supported; send 2D Cartesian data",
        id="radial",
    ),
    pytest.param([m.encode_header(b"<ismrmrdHeader/>")], "mrd header: encoding is missing", id="empty header"),
    pytest.param([m.encode_close()], "mrd: no data came before CLOSE", id="only close"),
]


@pytest.mark.parametrize(("data", "text"), NOTHING_KEPT)
def test_what_cannot_become_a_scan_is_answered(appliance: Appliance, data: list[bytes], text: str) -> None:
    result = appliance.session(*data)
    assert len(result.texts) == 1
    assert text in result.texts[0]
    assert result.texts[0].startswith("nearscan: scan ")
    assert result.closed
    assert appliance.messages == []
    appliance.assert_serves_the_next_scan()


def test_a_frame_larger_than_the_site_takes_is_refused() -> None:
    running = Appliance(max_frame_mb=1)
    encoding = cine_encoding((8, 256, 256), 1)
    heads, data = cine_lines(np.zeros((8, 256, 256), np.complex64), 0, 1, 0)
    start = m.encode_header(encode_header_xml(encoding))
    result = running.session(start, m.encode_acquisitions(heads[:1], data[:1]))
    assert "frames of 8 channels, 256x256 have 4 MiB, at most 1 are taken; raise max_frame_mb" in result.texts[0]
    assert result.closed
    running.stop()


def big_line() -> bytes:
    head = np.zeros(1, m.ACQUISITION_HEADER)
    head["number_of_samples"] = head["active_channels"] = 65535
    return struct.pack("<H", m.Id.ACQUISITION) + head.tobytes()


BROKEN = [
    pytest.param(START + LINES + LINES[:500], "mrd: no complete message for 1 s", id="never goes on"),
    pytest.param(START + LINES + HEADER, "mrd: second HEADER in one connection", id="second header"),
    pytest.param(START + LINES + big_line(), "mrd: acquisition with 65535 channels of 65535 samples", id="32 GiB line"),
    pytest.param(START + LINES + b"\x07\x07" * 99, "mrd: unknown message id 1799", id="garbage"),
    pytest.param(START + LINES, "mrd: no complete message for 1 s; send CLOSE (id 4) at the end", id="never closes"),
]


@pytest.mark.parametrize(("data", "text"), BROKEN)
def test_a_scan_that_breaks_is_aborted_and_what_arrived_is_kept(impatient: Appliance, data: bytes, text: str) -> None:
    result = impatient.session(data)
    assert result.texts == [f"nearscan: scan aborted: {impatient.end.reason}"]
    assert result.closed
    assert impatient.end.reason.startswith(text)
    assert (impatient.end.status, impatient.end.n_frames) == ("aborted", 1)
    (frame,) = impatient.of(Frame)
    assert np.array_equal(frame.array, KSPACE[:, frame.attachments["ky"]])
    impatient.assert_serves_the_next_scan()


def test_a_trickle_that_never_completes_a_message_ends_too(impatient: Appliance) -> None:
    scanner = impatient.scanner()
    scanner.send(START + struct.pack("<HI", m.Id.TEXT, 1 << 20))
    deadline = time.monotonic() + WAIT_S
    while not scanner.result.closed and time.monotonic() < deadline:
        scanner.send(b"a")
        time.sleep(0.02)
    assert scanner.wait().texts[0].endswith("mrd: no complete message for 1 s; send CLOSE (id 4) at the end")


@pytest.mark.parametrize("reset", [False, True])
def test_a_scanner_that_dies_mid_line_leaves_a_partial_frame(appliance: Appliance, reset: bool) -> None:
    sock = socket.create_connection(("127.0.0.1", appliance.port))
    line_bytes = len(LINES) // 10
    sock.sendall(START + LINES[: 6 * line_bytes + 100])
    appliance.until(lambda: appliance.of(Scan))
    if reset:
        time.sleep(0.1)  # let the lines be read before the reset throws them away
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    appliance.until(lambda: appliance.of(End))
    (frame,) = appliance.of(Frame)
    assert frame.attachments["ky"].tolist() == [0, 2, 4, 6, 7, 8]
    assert [mark.reason for mark in frame.marks] == ["lines 10, 12, 14 did not come"]
    assert appliance.end.status == "aborted"
    expected = "mrd: the connection was lost: " if reset else "mrd: the connection ended inside a message, 100 of "
    assert appliance.end.reason.startswith(expected)
    assert appliance.end.reason.endswith("; frame 0: lines 10, 12, 14 did not come")
    appliance.assert_serves_the_next_scan()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("skip-line", "frame 1: line 4 did not come"),
        ("repeat-line", "frame 1: line 4 came more than once, the first is kept"),
        ("nan-line", "frame 1: line 4 with NaN or Inf left out"),
        ("zeros", "frame 1: all samples are zero"),
    ],
)
def test_a_faulty_frame_is_marked_and_the_scan_incomplete(appliance: Appliance, fault: str, reason: str) -> None:
    result = appliance.cine(3, faults={1: fault})
    assert result.texts == [f"nearscan: scan incomplete: {reason}"]
    assert result.closed
    assert (appliance.end.status, appliance.end.reason, appliance.end.n_frames) == ("incomplete", reason, 3)
    assert [len(frame.marks) for frame in appliance.of(Frame)] == [0, 1, 0]
    appliance.assert_serves_the_next_scan()


def test_fewer_frames_than_the_header_said_is_incomplete(appliance: Appliance) -> None:
    result = appliance.cine(2, n_frames=5)
    assert result.texts == ["nearscan: scan incomplete: 2 of 5 frames came"]


def test_while_the_graph_is_behind_the_scanner_waits_and_nothing_is_lost(appliance: Appliance) -> None:
    kspace = RNG.standard_normal((8, 128, 256)).astype(np.float32).view(np.complex64)  # 1 MiB
    appliance.hold.clear()
    results: list[ScannerResult] = []

    def stream() -> None:
        frames = (kspace for _ in range(30))
        results.append(stream_cine("127.0.0.1", appliance.port, frames, acceleration=1, frame_rate_hz=0))

    thread = threading.Thread(target=stream)
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()  # 30 MiB are more than the sockets' buffers hold
    assert appliance.messages == []
    appliance.hold.set()
    thread.join(WAIT_S)
    assert [frame.sequence for frame in appliance.of(Frame)] == list(range(30))
    assert results[0].closed
    assert appliance.end.status == "complete"


def test_stop_ends_a_running_scan_as_aborted() -> None:
    running = Appliance()
    scanner = running.scanner()
    scanner.send(START + LINES)
    running.until(lambda: running.of(Frame))
    running.stop()
    assert (running.end.status, running.end.reason) == ("aborted", "nearscan is stopping")
    result = scanner.wait()
    assert result.texts == ["nearscan: scan aborted: nearscan is stopping"]
    assert result.closed


def test_the_text_log_says_when_a_scan_begins() -> None:
    running = Appliance(text_log=True)
    result = running.cine()
    assert result.texts == [f"nearscan: scan {running.of(Scan)[0].scan_id} has begun"]
    running.stop()


def test_a_taken_port_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        source = mrd.make(mrd.Settings(port=port, bind="127.0.0.1"), Context("p", Path(), Path()))
        with pytest.raises(ConfigError, match=f"mrd source: cannot listen on 127.0.0.1:{port}: Address already in use"):
            source.run(lambda message: None)


def test_status_counts_and_shows_no_identity(appliance: Appliance) -> None:
    appliance.cine(2, faults={0: "skip-line"}, identity=Identity(patient_name="Doe^Jane", patient_id="123"))
    appliance.until(lambda: appliance.source.status()["sessions"] == 0)
    status = appliance.source.status()
    assert (status["sessions_served"], status["frames"], status["scans_not_complete"]) == (1, 2, 1)
    assert status["last_reason"] == "frame 0: line 4 did not come"
    assert "Doe" not in str(status) + str(appliance.messages)
