# SPDX-License-Identifier: Apache-2.0
"""Replays a recording into the appliance: the same bytes in the same pieces, at their own or another pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from appliance.errors import RecordingError
from appliance.recording import Piece, Recording
from appliance.simulate.mri import ReceivedImage, Scanner

TIMEOUT_S = 60.0


@dataclass
class Replayed:
    """What a replay came to."""

    n_pieces: int = 0
    n_bytes: int = 0
    n_messages: int = 0  # OpenIGTLink: whole ones sent
    n_images: int = 0  # MRD: that came back
    late_s: float = 0.0  # how far behind their times pieces were at most, because the appliance did not take them
    texts: list[str] = field(default_factory=list)
    closed: bool = False  # the appliance ended the session in good order
    error: str = ""
    cut: str = ""  # why the recording is not the whole connection


def paced(recording: Recording, speed: float, result: Replayed) -> Iterator[Piece]:
    """Give the whole pieces at their times, `speed` times as fast (0: at once), and keep account in `result`."""
    begin_s = time.monotonic()
    try:
        for piece in recording.pieces():
            if speed:
                late_s = time.monotonic() - (begin_s + piece.since_ns * 1e-9 / speed)
                time.sleep(max(0.0, -late_s))
                result.late_s = max(result.late_s, late_s)
            yield piece
            result.n_pieces += 1
            result.n_bytes += len(piece.data)
        result.cut = recording.cut
    except RecordingError as error:
        result.cut = str(error)


def replay_mrd(
    recording: Recording,
    host: str,
    port: int,
    speed: float = 1.0,
    on_image: Callable[[ReceivedImage], None] = lambda image: None,
) -> Replayed:
    """Be the scanner that was recorded: send what it sent, and read the answers.

    A session that was cut, or whose scanner did not say CLOSE, ends as a lost connection, as it did then. Raises
    OSError when nobody listens.
    """
    result = Replayed()

    def count(image: ReceivedImage) -> None:
        result.n_images += 1
        on_image(image)

    scanner = Scanner(host, port, TIMEOUT_S, count)
    for piece in paced(recording, speed, result):
        if not scanner.send(piece.data):
            break
    scanner.hang_up()
    answer = scanner.wait()
    result.texts, result.closed, result.error = answer.texts, answer.closed, answer.error
    return result
