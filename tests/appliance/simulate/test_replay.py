# SPDX-License-Identifier: Apache-2.0
"""What was recorded of a scanner, played again into the same source: the same scan, bit by bit."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from appliance.context import Context
from appliance.frames import End, Frame, Message
from appliance.igtl import Connection, Image, Query, Status, Transform, encode
from appliance.igtl import Message as IgtlMessage
from appliance.mrd import messages as m
from appliance.mrd.header import encode_header_xml
from appliance.recording import MAGIC, Header, Kind, Recording, encode_head
from appliance.simulate import replay, ultrasound
from appliance.simulate.mri import Scanner, cine_encoding, stream_cine
from appliance.simulate.replay import Replayed, paced, replay_mrd
from appliance.simulate.replay_openigtlink import Restamp, replay_openigtlink
from appliance.ultrasound import phantom
from operators.sources import mrd, openigtlink

RNG = np.random.default_rng(5)
FRAMES = [RNG.standard_normal((2, 16, 24)).astype(np.float32).view(np.complex64) for _ in range(6)]
START = m.encode_config_file("x") + m.encode_header(encode_header_xml(cine_encoding((2, 16, 12), 2)))
WAIT_S = 20.0


class Appliance:
    """A running MRD source that records and collects what it emits."""

    def __init__(self, folder: Path, record: dict[str, Any] | None) -> None:
        self.folder = folder
        self.messages: list[Message] = []
        settings = mrd.Settings(port=0, bind="127.0.0.1", record=record)
        self.source = mrd.make(settings, Context("mri-live", folder, folder))
        self.hold = threading.Event()
        self.hold.set()
        self._thread = threading.Thread(target=self.source.run, args=(self._emit,), daemon=True)
        self._thread.start()
        self.until(lambda: self.port > 0)

    @property
    def port(self) -> int:
        return int(self.source.status()["port"])

    def _emit(self, message: Message) -> None:
        assert self.hold.wait(WAIT_S)
        self.messages.append(message)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def stop(self) -> list[Path]:
        """Stop, and give the recordings."""
        self.source.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return sorted(self.folder.glob("recordings/mri-live/*"))

    @property
    def frames(self) -> list[Frame]:
        return [message for message in self.messages if isinstance(message, Frame)]

    @property
    def end(self) -> End:
        (end,) = (message for message in self.messages if isinstance(message, End))
        return end


def recorded(folder: Path, scan: Callable[[Appliance], object]) -> tuple[Appliance, Path]:
    """Let `scan` happen to an appliance that records."""
    live = Appliance(folder, {"max_gb": 1})
    scan(live)
    (path,) = live.stop()
    return live, path


def played(folder: Path, path: Path, speed: float = 0) -> tuple[Appliance, Replayed]:
    """Play a recording into another appliance."""
    again = Appliance(folder / "again", None)
    with Recording(path) as recording:
        result = replay_mrd(recording, "127.0.0.1", again.port, speed)
    again.stop()
    return again, result


def cine(live: Appliance) -> None:
    cine_at(live, 0)


def cine_at(live: Appliance, rate_hz: float) -> None:
    result = stream_cine(
        "127.0.0.1", live.port, FRAMES, n_calibration_lines=4, frame_rate_hz=rate_hz, n_frames=6, timeout_s=WAIT_S
    )
    assert (result.closed, result.error) == (True, "")


def assert_same_scan(live: Appliance, again: Appliance, n_frames: int) -> None:
    assert [len(live.frames[:n_frames]), len(again.frames)] == [n_frames, n_frames]
    for before, after in zip(live.frames, again.frames, strict=False):
        assert before.array.tobytes() == after.array.tobytes()
        assert (before.sequence, before.role, before.position) == (after.sequence, after.role, after.position)
        assert np.array_equal(before.attachments["ky"], after.attachments["ky"])


@pytest.mark.parametrize("speed", [0, 1, 3])
def test_a_replay_is_the_scan_bit_by_bit(tmp_path: Path, speed: float) -> None:
    live, path = recorded(tmp_path, cine)
    again, result = played(tmp_path, path, speed)
    assert_same_scan(live, again, len(FRAMES))
    assert (result.closed, result.error, result.cut, result.texts) == (True, "", "", [])
    assert (again.end.status, again.end.reason, again.end.n_frames) == ("complete", "", 6)
    with Recording(path) as recording:
        sent = b"".join(piece.data for piece in recording.pieces())
    assert sent.endswith(m.encode_close())
    assert result.n_bytes == len(sent)


def test_a_recording_that_was_cut_replays_what_is_whole_of_it(tmp_path: Path) -> None:
    def slowly(live: Appliance) -> None:
        cine_at(live, 50)  # a piece for each frame

    live, path = recorded(tmp_path, slowly)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    again, result = played(tmp_path, path)
    n_frames = len(again.frames)
    assert 0 < n_frames < len(FRAMES)
    assert_same_scan(live, again, n_frames)
    assert result.cut.startswith("the file ends inside part ")
    assert (again.end.status, again.end.n_frames) == ("aborted", n_frames)
    assert result.closed
    assert result.texts[0].startswith("nearscan: scan aborted: mrd: the connection ended ")
    path.write_bytes(data[:-80] + bytes([data[-80] ^ 1]) + data[-79:])
    assert "is damaged: its checksum is" in played(tmp_path / "2", path)[1].cut


def test_a_scanner_that_was_lost_is_lost_again(tmp_path: Path) -> None:
    def lost(live: Appliance) -> None:
        scanner = Scanner("127.0.0.1", live.port, WAIT_S)
        scanner.send(m.encode_config_file("x"))
        scanner.hang_up()
        scanner.wait()

    live, path = recorded(tmp_path, lost)
    with Recording(path) as recording:
        assert b"".join(piece.data for piece in recording.pieces()) == m.encode_config_file("x")
        assert recording.cut == "", "all of it is there: it was the connection that ended early"
    again, result = played(tmp_path, path)
    assert again.messages == live.messages == []
    assert result.texts == [
        "nearscan: scan aborted: mrd: the connection ended without CLOSE; send CLOSE (id 4) when the scan is over"
    ]


def test_an_appliance_that_does_not_read_holds_the_replay_up(tmp_path: Path) -> None:
    head = np.zeros(1, m.IMAGE_HEADER)[0]
    head["field_of_view"] = (300, 300, 8)
    image = m.encode_image(head, b"", np.zeros((1, 1, 512, 1024), np.float32))

    def images(live: Appliance) -> None:
        scanner = Scanner("127.0.0.1", live.port, WAIT_S)
        scanner.send(START + image * 20)
        scanner.finish()

    _, path = recorded(tmp_path, images)
    again = Appliance(tmp_path / "again", None)
    again.hold.clear()
    results: list[Replayed] = []

    def play() -> None:
        with Recording(path) as recording:
            results.append(replay_mrd(recording, "127.0.0.1", again.port, 0))

    player = threading.Thread(target=play)
    player.start()
    again.until(lambda: again.source.status()["sessions"] == 1)
    player.join(0.3)
    assert player.is_alive(), "40 MiB do not fit what the kernel holds for a socket"
    again.hold.set()
    player.join(WAIT_S)
    again.stop()
    assert (results[0].closed, results[0].error, len(again.frames)) == (True, "", 20)


def test_pieces_come_at_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.recording"
    times_s = (0.5, 0.5, 1.0, 60.0)
    path.write_bytes(file("mrd", [(t, b"x") for t in times_s]))
    clock = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(replay.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(replay.time, "sleep", sleep)
    for speed, expected in ((1, times_s), (4, [t / 4 for t in times_s]), (0, [0] * 4)):
        clock[0], result = 100.0, Replayed()
        with Recording(path) as recording:
            assert [clock[0] - 100 for _ in paced(recording, speed, result)] == pytest.approx(expected)
        assert (result.n_pieces, result.n_bytes, result.late_s) == (4, 4, pytest.approx(0, abs=1e-9))
    with Recording(path) as recording:
        result, clock[0] = Replayed(), 100.0
        for n, _ in enumerate(paced(recording, 1, result)):
            clock[0] += 3 if n == 0 else 0  # the appliance took three seconds for the first
    assert result.late_s == pytest.approx(3.0)
    assert clock[0] - 100 == pytest.approx(60.0), "what was late is made up for"


STREAM = [
    IgtlMessage(Transform(np.eye(4)), "Probe", time_ns=1_700_000_000_000_000_000),
    IgtlMessage(Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), np.eye(4)), "Image", 1_700_000_000_500_000_000),
    IgtlMessage(Status(1), "no time"),
    IgtlMessage(Transform(np.eye(4)), "Probe", 1_700_000_001_000_000_000, version=3, metadata={"a": "b"}),
]
BYTES = b"".join(map(encode, STREAM))


def file(protocol: Any, pieces: list[tuple[float, bytes]]) -> bytes:
    header = Header(protocol=protocol, pipeline="us", peer="", started_ns=1_700_000_000_000_000_000)
    parts = [(Kind.HEADER, 0, header.model_dump_json().encode())]
    parts += [(Kind.PIECE, int(t * 1e9), data) for t, data in pieces] + [(Kind.END, int(pieces[-1][0] * 1e9), b"")]
    out, crc = MAGIC, 0
    for kind, since_ns, data in parts:
        head, crc = encode_head(kind, since_ns, data, crc)
        out += head + data
    return out


@pytest.mark.parametrize("n_cut", [1, 7, 58, 59, 10_000])
def test_time_stamps_move_however_the_stream_is_cut(n_cut: int) -> None:
    restamp = Restamp(lambda ns: ns + 100)
    out = b"".join(restamp.feed(BYTES[at : at + n_cut]) for at in range(0, len(BYTES), n_cut))
    messages = Connection().receive(out)  # checks each CRC
    assert [message.time_ns for message in messages] == [one.time_ns + 100 if one.time_ns else 0 for one in STREAM]
    assert [encode(message)[42:] for message in messages] == [encode(message)[42:] for message in STREAM]
    assert (restamp.n_messages, restamp.rest()) == (4, b"")


def test_what_is_no_openigtlink_passes_as_it_was() -> None:
    restamp = Restamp(lambda ns: ns + 100)
    junk = bytes(range(200))
    assert restamp.feed(junk[:30]) == b""
    assert restamp.rest() == junk[:30]
    assert restamp.feed(junk[30:]) == junk
    assert restamp.feed(BYTES) == BYTES
    huge = encode(STREAM[0])[:42] + (1 << 63).to_bytes(8, "big") + bytes(8)
    assert len(Restamp(lambda ns: 1 << 200).feed(huge + BYTES)) == len(huge + BYTES)


def test_the_appliance_connects_and_gets_what_was_recorded_as_if_now(tmp_path: Path) -> None:
    path = tmp_path / "x.recording"
    path.write_bytes(file("openigtlink", [(0.0, BYTES[:200]), (0.1, BYTES[200:])]))
    for keep_times in (False, True):
        ports: list[int] = []
        results: list[Replayed] = []

        def serve(keep_times: bool = keep_times, ports: list[int] = ports, results: list[Replayed] = results) -> None:
            with Recording(path) as recording:
                results.append(replay_openigtlink(recording, "127.0.0.1", 0, 2.0, keep_times, ports.append))

        server = threading.Thread(target=serve)
        server.start()
        while not ports:
            time.sleep(0.005)
        before_ns = time.time_ns()
        with socket.create_connection(("127.0.0.1", ports[0]), timeout=WAIT_S) as client:
            client.sendall(encode(IgtlMessage(Query("GET", "CAPABIL"))))
            data = b""
            while piece := client.recv(1 << 16):
                data += piece
        server.join(WAIT_S)
        messages = Connection().receive(data)
        assert len(messages) == results[0].n_messages == 4
        assert (results[0].closed, results[0].error) == (True, "")
        if keep_times:
            assert data == BYTES
        else:
            first, second, none, last = (message.time_ns for message in messages)
            assert before_ns <= first <= time.time_ns()
            assert (second - first, last - first, none) == (250_000_000, 500_000_000, 0), "twice as fast"
            assert np.array_equal(messages[1].content.array, STREAM[1].content.array)


class OrRoom:
    """A running OpenIGTLink source of tracked ultrasound that collects what it emits."""

    def __init__(self, folder: Path, port: int, record: dict[str, Any] | None) -> None:
        self.messages: list[Message] = []
        settings = openigtlink.Settings(
            host="127.0.0.1",
            port=port,
            probe="ProbeToTracker",
            reference="ReferenceToTracker",
            image_to_probe=tuple(phantom.IMAGE_TO_PROBE.ravel().tolist()),
            wait_ms=200,
            max_skew_ms=1000,
            max_late_ms=10_000,
            record=record,
        )
        self.source = openigtlink.make(settings, Context("or-live", folder, folder))
        self._thread = threading.Thread(target=self.source.run, args=(self.messages.append,), daemon=True)
        self._thread.start()

    def wait_for(self, last: bytes) -> list[Frame]:
        """Wait for the frame with these pixels, stop, and give all frames."""
        deadline = time.monotonic() + WAIT_S
        while not any(frame.array.tobytes() == last for frame in self.frames):
            assert time.monotonic() < deadline, self.source.status()
            time.sleep(0.005)
        self.source.stop()
        self._thread.join(WAIT_S)
        return self.frames

    @property
    def frames(self) -> list[Frame]:
        return [message for message in list(self.messages) if isinstance(message, Frame)]


def test_tracked_ultrasound_is_replayed_with_its_poses(tmp_path: Path) -> None:
    server = ultrasound.UltrasoundServer(0)
    live = OrRoom(tmp_path, server.port, {"max_gb": 1})
    assert server.connected.wait(WAIT_S)
    pictures = [phantom.picture(0.1 * n) for n in range(6)]
    sent = [picture.array.astype(np.float32).tobytes() for picture in pictures]
    ultrasound.stream(server, iter(pictures), rate_hz=20, stop=threading.Event())
    before = {frame.array.tobytes(): frame for frame in live.wait_for(sent[-1])}
    server.close()
    (path,) = tmp_path.glob("recordings/or-live/*-openigtlink-*")

    ports: list[int] = []
    results: list[Replayed] = []

    def serve() -> None:
        with Recording(path) as recording:
            results.append(replay_openigtlink(recording, "127.0.0.1", 0, on_listening=ports.append))

    thread = threading.Thread(target=serve)
    thread.start()
    while not ports:
        time.sleep(0.005)
    started_ns = time.time_ns()
    frames = OrRoom(tmp_path / "again", ports[0], None).wait_for(sent[-1])
    thread.join(WAIT_S)
    assert (results[0].closed, results[0].error, results[0].cut) == (True, "", "")
    assert {frame.array.tobytes() for frame in frames} <= set(sent), (
        "newest wins: some may be left out, none is changed"
    )
    for frame in frames:
        twin = before.get(frame.array.tobytes())
        if twin is not None:
            assert frame.marks == twin.marks == ()
            np.testing.assert_allclose(frame.affine, twin.affine, atol=1e-6)
        assert frame.acquired_ns >= started_ns, "as if it were now"
    assert sent[-1] in before
