# SPDX-License-Identifier: Apache-2.0
"""What an operator may know of the appliance it runs in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


class Reply(Protocol):
    """The way back to whoever sent a scan (an MRD session). Thread-safe."""

    def send(self, data: bytes) -> None:
        """Write whole, waiting for the peer. Raises PeerError when it is gone or does not read."""

    def close(self, status: str, reason: str) -> None:
        """Say how the scan ended (a TEXT where there is a reason), send CLOSE and hang up."""


def _at_once(scan_id: str) -> bool:
    del scan_id
    return True


def _no_alarm(key: str, text: str) -> None:
    del key, text


@dataclass(frozen=True)
class Context:
    """Given to every `make(settings, context)`.

    `alarm(key, text)` raises an alarm for people (one per key until it changes; empty text clears it).
    `replies` maps a scan id to the way back to its sender; a source adds, `mrd_reply` takes. `reply_wanted` is set by
    a sink that will close each reply; without one the source does so itself. `is_through(scan_id)` says whether every
    sink has had the End of a scan, and the durable ones have all of it on disk.
    """

    pipeline: str
    data_dir: Path
    run_dir: Path  # ipc sockets of the live bus
    device: str = "cpu"  # what `site.device` came to: "cpu" or "gpu"
    models_dir: Path | None = None  # None: the shipped ones
    recheck_every: int = 256  # one frame in so many is run again on the reference; 0: none
    destinations: tuple[str, ...] = ()
    reserve_bytes: int = 0  # free disk space below which the buffer refuses
    alarm: Callable[[str, str], None] = _no_alarm
    replies: dict[str, Reply] = field(default_factory=dict)
    is_through: Callable[[str], bool] = _at_once
    reply_wanted: threading.Event = field(default_factory=threading.Event)
