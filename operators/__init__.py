# SPDX-License-Identifier: Apache-2.0
"""The operator contract: what a file in sources/, stages/ or sinks/ offers.

Each file has, in this order: a docstring with ``In:`` and ``Out:`` lines and the reference; pure functions or
calls into ``appliance/…``; ``Settings`` (a frozen pydantic model, every field with help, unit and bounds);
``make(settings, context)`` which returns one of the objects below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from appliance.frames import End, Frame, Message, Scan

Emit = Callable[[Message], None]


class OperatorSettings(BaseModel):
    """Parent of every operator's `Settings`: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Protocol):
    """One per pipeline. The adapter calls `run` on a thread of its own."""

    def run(self, emit: Emit) -> None:
        """Emit ``Scan, Frame…, End`` until stopped. `emit` is thread-safe and blocks when the graph is behind:
        do not read on from the peer while it does (that is the back-pressure). Several scans may interleave."""

    def stop(self) -> None:
        """Make `run` return soon; called from another thread. Running scans end as aborted."""

    def status(self) -> dict[str, Any]:
        """Plain values for console, API, metrics and journal."""


class Stage(Protocol):
    """One instance per scan: state needs no key. `make` is called once at start too, as a check and to warm up.

    Two optional methods: ``prepare(frame)`` gets noise and calibration frames; ``fallback(frame)`` gives a plain
    result when `frame` raised (an image-to-image stage needs none: the adapter passes the image through, marked).
    """

    def begin(self, scan: Scan) -> Scan:
        """Declare what comes out; raise StageError or ValueError if this scan cannot be taken."""

    def frame(self, frame: Frame) -> Frame | None:
        """Give the processed frame, or None while collecting. Never write into the input."""

    def end(self) -> Iterable[Frame]:
        """Give what was collected."""

    def status(self) -> dict[str, Any]:
        """Plain values."""


class Sink(Protocol):
    """One per pipeline. Never blocks: it hands over to its own thread.

    Optional: ``backlog() -> float`` in 0…1 and beyond; at 1 or more the source stops reading (durable sinks).
    Optional: ``close()`` at shutdown, after the last message; must flush within its own deadline.
    """

    def begin(self, scan: Scan) -> None: ...

    def frame(self, frame: Frame) -> None: ...

    def end(self, end: End) -> None: ...

    def status(self) -> dict[str, Any]: ...
