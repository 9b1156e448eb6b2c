# SPDX-License-Identifier: Apache-2.0
"""The simulated scanner, read by the reference library instead of by our own server."""

from __future__ import annotations

import io
import socket
import threading
import time

import ismrmrd
import ismrmrd.xsd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ProtocolDeserializer

from appliance.mrd import messages as m
from appliance.simulate.mri import FAULTS, Scanner, cine_lines, stream_cine

RNG = np.random.default_rng(8)
FRAMES = [RNG.standard_normal((3, 16, 24)).astype(np.float32).view(np.complex64) for _ in range(3)]


class Listener:
    """Takes one connection, reads until CLOSE comes, answers with `answer`."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.received = b""
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        sock, _ = self.server.accept()
        with self.server, sock:
            while not self.received.endswith(m.encode_close()):
                self.received += sock.recv(1 << 20)
            sock.sendall(self.answer)

    def read(self) -> list:
        """Give what the reference library makes of the stream. It does not know the NUL after the header."""
        self.thread.join(20)
        return list(ProtocolDeserializer(io.BytesIO(self.received.replace(b"Header>\0", b"Header> "))).deserialize())


def test_a_cine_is_what_a_scanner_would_send() -> None:
    listener = Listener()
    noise = RNG.standard_normal((3, 16)).astype(np.float32).view(np.complex64)
    stream_cine("127.0.0.1", listener.port, FRAMES, n_calibration_lines=4, frame_rate_hz=0, noise=noise, n_frames=3)
    config, header, *lines = listener.read()
    assert config == ConfigFile("nearscan")
    assert isinstance(header, ismrmrd.xsd.ismrmrdHeader)
    assert header.encoding[0].encodingLimits.repetition.maximum == 2
    assert header.encoding[0].parallelImaging.accelerationFactor.kspace_encoding_step_1 == 2
    assert lines[0].is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    assert np.array_equal(lines[0].data, noise)
    for n, frame in enumerate(FRAMES):
        of_frame = [line for line in lines[1:] if line.idx.repetition == n]
        ky = [line.idx.kspace_encode_step_1 for line in of_frame]
        assert ky == ([0, 2, 4, 6, 7, 8, 9, 10, 12, 14] if n == 0 else list(range(0, 16, 2)))
        assert all(np.array_equal(line.data, frame[:, k]) for line, k in zip(of_frame, ky, strict=True))
        assert all(line.center_sample == 6 for line in of_frame)
        last = [k for line, k in zip(of_frame, ky, strict=True) if line.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)]
        assert last == [14]
        only = [
            k for line, k in zip(of_frame, ky, strict=True) if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        ]
        assert only == ([7, 9] if n == 0 else [])


@pytest.mark.parametrize(("n_y", "acceleration"), [(16, 2), (15, 2), (16, 3), (17, 4), (16, 1)])
def test_the_grid_holds_the_centre_and_calibration_is_contiguous(n_y: int, acceleration: int) -> None:
    heads, data = cine_lines(np.zeros((1, n_y, 4), np.complex64), 0, acceleration, 6)
    ky = heads["idx"]["kspace_encode_step_1"]
    only = (heads["flags"] & m.Flag.PARALLEL_CALIBRATION.mask) > 0
    both = (heads["flags"] & m.Flag.PARALLEL_CALIBRATION_AND_IMAGING.mask) > 0
    assert set(np.diff(ky[~only])) == {acceleration}
    assert n_y // 2 in ky[~only]
    if acceleration > 1:
        assert np.array_equal(ky[only | both], np.arange(n_y // 2 - 3, n_y // 2 + 3))
    else:
        assert len(ky) == n_y
        assert not (only | both).any()
    assert len(data) == len(heads)


def test_faults_do_what_they_say() -> None:
    heads, data = cine_lines(FRAMES[0], 0, 1, 0)
    skipped = FAULTS["skip-line"](heads, data)[0]["idx"]["kspace_encode_step_1"]
    assert skipped.tolist() == [k for k in range(16) if k != 4]
    assert FAULTS["repeat-line"](heads, data)[0]["idx"]["kspace_encode_step_1"].tolist() == sorted([*range(16), 4])
    assert np.flatnonzero(~np.isfinite(FAULTS["nan-line"](heads, data)[1]).all((1, 2))).tolist() == [4]
    assert not FAULTS["zeros"](heads, data)[1].any()
    assert np.isfinite(data).all()
    assert data.any()  # the original is not touched


def test_frames_are_paced_and_their_times_noted() -> None:
    listener = Listener(m.encode_text("bye") + m.encode_close())
    called: list[int] = []
    begin_ns = time.monotonic_ns()
    result = stream_cine("127.0.0.1", listener.port, FRAMES, frame_rate_hz=20, on_frame=called.append)
    assert called == [0, 1, 2]
    assert len(result.sent_ns) == 3
    assert result.sent_ns[2] - begin_ns >= 100e6  # the third frame is due 2 / 20 s after the first
    assert (result.texts, result.closed, result.error) == (["bye"], True, "")


def test_an_appliance_that_never_answers_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        scanner = Scanner("127.0.0.1", server.getsockname()[1], timeout_s=0.2)
        result = scanner.finish()
    assert result.error == "scanner: no CLOSE within 0.2 s"
    assert not result.closed


def test_an_answer_that_is_not_mrd_is_told() -> None:
    listener = Listener(b"\xff\xff")
    result = stream_cine("127.0.0.1", listener.port, FRAMES[:1], frame_rate_hz=0)
    assert result.error.startswith("scanner: reading failed: mrd: unknown message id 65535")


def test_no_frames_is_said_without_a_connection() -> None:
    assert stream_cine("127.0.0.1", 1, []).error == "scanner: no frames to send"
