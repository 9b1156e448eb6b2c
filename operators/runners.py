# SPDX-License-Identifier: Apache-2.0
"""What the adapter does around every operator: time it, catch it, pass the image through, keep the count.

Rule: no Holoscan here, so that the service class of the live path is tested as plain Python.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from appliance import __version__
from appliance.arrays import to_host
from appliance.frames import Applied, End, Frame, Mark, Message, Scan
from appliance.latency import Latency
from operators import Sink, Stage

log = logging.getLogger(__name__)

Alarm = Callable[[str, str], None]
Backlog = Callable[[], float]
REPEAT_S = 10.0
_ENDED_KEPT = 256  # scans whose source may still ask


class Activity:
    """What the graph's thread is doing now, for the heartbeat: an operator stuck in compute is seen from outside."""

    def __init__(self) -> None:
        self._doing: dict[int, tuple[str, int]] = {}  # by thread: some schedulers run several

    def enter(self, name: str) -> None:
        self._doing[threading.get_ident()] = (name, time.monotonic_ns())

    def leave(self) -> None:
        self._doing.pop(threading.get_ident(), None)

    def stuck(self, limit_s: float) -> str:
        """Return which operator has computed for longer than `limit_s`, or an empty text."""
        doing = min(list(self._doing.values()), key=lambda each: each[1], default=None)
        if doing is None or time.monotonic_ns() - doing[1] < limit_s * 1e9:
            return ""
        return f"{doing[0]} computing for {(time.monotonic_ns() - doing[1]) / 1e9:.0f} s"


class Feed:
    """The bounded queue between a source's threads and the graph.

    `put` waits while the queue is full or any durable sink is behind; the source then stops reading its peer:
    that is the back-pressure on the scanner's socket.
    """

    def __init__(self, n_frames: int, wake: Callable[[], None] = lambda: None) -> None:
        self._queue: deque[Message] = deque()
        self._room = threading.Condition()
        self._n_frames = n_frames
        self._closed = False
        self.wake = wake
        self.started = threading.Event()  # the graph runs and will take
        self.backlogs: list[Backlog] = []
        self.n_frames_in = 0
        self.latency = Latency()  # last byte in -> taken by the graph

    def put(self, message: Message) -> None:
        """Append, waiting for room. Thread-safe."""
        if not isinstance(message, Frame):
            log.info("%s", _told_of(message))
        with self._room:
            while not self._closed and (len(self._queue) >= self._n_frames or self._behind()):
                self._room.wait(0.002)  # sinks do not signal; 2 ms is far below a frame
            self._queue.append(message)
            self.n_frames_in += isinstance(message, Frame) and message.role == "imaging"
        self.wake()

    def _behind(self) -> bool:
        return any(backlog() >= 1 for backlog in self.backlogs)

    def take(self) -> Message | None:
        """Return the oldest message, or None when there is none now."""
        with self._room:
            if not self._queue:
                return None
            self._room.notify_all()
            message = self._queue.popleft()
        if isinstance(message, Frame):
            self.latency.add_ns(time.monotonic_ns() - message.received_ns)
        return message

    def close(self) -> None:
        """Nothing more will come; `put` no longer waits."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self.wake()

    @property
    def finished(self) -> bool:
        """Closed and empty."""
        with self._room:
            return self._closed and not self._queue

    def __len__(self) -> int:
        return len(self._queue)


def _told_of(message: Scan | End) -> str:
    """One line for the journal: which scan began, or how it ended."""
    if isinstance(message, Scan):
        return f"scan {message.scan_id} began: {message.modality} from {message.source or 'its source'}"
    return (
        f"scan {message.scan_id} {message.status}, {message.n_frames} frames{message.reason and ': '}{message.reason}"
    )


@dataclass
class _Running:
    """One stage at work on one scan; `bypass` is why it is not."""

    stage: Stage | None = None
    bypass: str = ""
    n_lost: int = 0
    first_loss: str = ""
    images: bool = True  # this stage's input is images, so that passing through makes sense


@dataclass
class StageRunner:
    """Runs one stage of a pipeline for all its scans."""

    name: str
    make: Callable[[], Stage]
    settings: BaseModel
    alarm: Alarm
    activity: Activity = field(default_factory=Activity)
    deadline_ns: int = 0
    latency: Latency = field(default_factory=Latency)
    n_frames: int = 0
    n_passed_through: int = 0
    n_deadline_misses: int = 0
    n_lost: int = 0

    def __post_init__(self) -> None:
        self._scans: dict[str, _Running] = {}
        self._newest: Stage | None = None
        self._told_reason, self._told_s = "", 0.0
        digest = hashlib.sha256(self.settings.model_dump_json().encode()).hexdigest()
        self._applied = Applied(self.name, __version__, digest[:16])

    def warm_up(self) -> None:
        """Make one instance now: models load before the first frame, and a broken one is told at once."""
        self._make()

    def process(self, message: Message) -> list[Message]:
        """Return what goes on to the next operator."""
        self.activity.enter(self.name)
        try:
            if isinstance(message, Scan):
                return [self._begin(message)]
            if message.scan_id not in self._scans:  # its Scan was lost with its sender: no stage may end the graph
                log.error("stage %s: message of unknown scan %s passed on", self.name, message.scan_id)
                return [message]
            if isinstance(message, End):
                return self._end(message)
            if message.role != "imaging":
                return [self._prepare(message)]
            return self._frame(message)
        finally:
            self.activity.leave()

    def status(self) -> dict[str, Any]:
        """Plain values: the counts of the adapter and what the newest scan's stage says of itself."""
        return {
            "frames": self.n_frames,
            "passed_through": self.n_passed_through,
            "deadline_misses": self.n_deadline_misses,
            "lost": self.n_lost,
            "latency_ms": self.latency.summary_ms(),
            "latency_histogram": self.latency.histogram(),
            **(self._newest.status() if self._newest else {}),
        }

    def _make(self) -> _Running:
        try:
            stage = self.make()
        except Exception as error:  # the adapter: a stage that cannot be made is bypassed, never a stop
            return _Running(bypass=self._failed("cannot start", error))
        self.alarm(f"stage {self.name}", "")
        self._newest = stage
        return _Running(stage)

    def _begin(self, scan: Scan) -> Scan:
        running = self._scans[scan.scan_id] = self._make()
        running.images = "coil" not in scan.axes and scan.axes[-2:] == ("y", "x")
        if running.stage is None:
            return scan
        try:
            return running.stage.begin(scan)
        except Exception as error:
            running.bypass = self._failed(f"cannot take scan {scan.scan_id}", error)
            return scan

    def _prepare(self, frame: Frame) -> Frame:
        running = self._scans[frame.scan_id]
        prepare = getattr(running.stage, "prepare", None)
        if prepare and not running.bypass:
            try:
                prepare(frame)
            except Exception as error:
                self._failed(f"cannot use the {frame.role} data of scan {frame.scan_id}", error)
        return frame

    def _frame(self, frame: Frame) -> list[Message]:
        running = self._scans[frame.scan_id]
        self.n_frames += 1
        if running.stage is None or running.bypass:
            return self._without(running, frame, running.bypass)
        age_ns = time.monotonic_ns() - frame.received_ns
        if self.deadline_ns and running.images and age_ns > self.deadline_ns:
            self.n_deadline_misses += 1
            reason = f"skipped, frame was {age_ns / 1e6:.0f} ms old and the limit is {self.deadline_ns / 1e6:.0f} ms"
            return self._without(running, frame, reason)
        started = time.monotonic_ns()
        try:
            out = running.stage.frame(frame)
            took_ns = time.monotonic_ns() - started
            self.latency.add_ns(took_ns)
            return [] if out is None else [self._finish(running.stage, frame, out, took_ns)]
        except Exception as error:
            return self._without(running, frame, self._failed(f"frame {frame.sequence}", error))

    def _finish(self, stage: Stage, frame: Frame, out: Frame, took_ns: int) -> Frame:
        """Add what the stage must not have to think of: provenance, and the image before it was processed."""
        took_ms = {**frame.took_ms, self.name: round(took_ns / 1e6, 3)}
        model = getattr(stage, "model", None)
        applied = self._applied
        if model:
            applied = replace(applied, model=model[0], model_digest=model[1], engine_digest=model[2])
        altered = out.array is not frame.array
        changed = frame.is_image and altered
        original = frame.array if changed and out.original is None else out.original
        provenance = (*out.provenance, replace(applied, altered=altered))
        return replace(out, provenance=provenance, original=original, took_ms=took_ms)

    def _without(self, running: _Running, frame: Frame, reason: str) -> list[Message]:
        """Pass an image through, marked; for k-space take the stage's plain fallback, also marked."""
        self.n_passed_through += 1
        mark = Mark(self.name, reason)
        if frame.is_image:
            return [replace(frame, marks=(*frame.marks, mark))]
        fallback = getattr(running.stage, "fallback", None)
        if fallback:
            try:
                out = fallback(frame)
                applied = replace(self._applied, operator=f"{self.name}:fallback")
                return [replace(out, marks=(*out.marks, mark), provenance=(*out.provenance, applied))]
            except Exception as error:
                reason = self._failed(f"fallback for frame {frame.sequence}", error)
        self.n_lost += 1
        running.n_lost += 1
        running.first_loss = running.first_loss or reason
        return []

    def _end(self, end: End) -> list[Message]:
        running = self._scans.pop(end.scan_id)
        collected: Iterable[Frame] = ()
        if running.stage is not None and not running.bypass:
            try:
                collected = list(running.stage.end())
            except Exception as error:
                running.n_lost += 1
                running.first_loss = self._failed(f"end of scan {end.scan_id}", error)
        if running.n_lost:
            reason = f"{self.name} gave no image for {running.n_lost} frames: {running.first_loss}"
            status = "aborted" if end.status == "aborted" else "incomplete"
            end = replace(end, status=status, reason="; ".join(filter(None, (end.reason, reason))))
        return [*(replace(frame, provenance=(*frame.provenance, self._applied)) for frame in collected), end]

    def _failed(self, where: str, error: Exception) -> str:
        """Tell journal and people; return the reason for marks. The same reason is told every 10 s, not every frame.

        The alarm stays until the next scan begins well: this scan did have a problem.
        """
        reason = str(error) or type(error).__name__
        now_s = time.monotonic()
        if reason != self._told_reason or now_s - self._told_s > REPEAT_S:
            self._told_reason, self._told_s = reason, now_s
            log.warning("stage %s: %s: %s", self.name, where, reason, exc_info=None if _told(error) else error)
            self.alarm(f"stage {self.name}", f"{where}: {reason}")
        error.__traceback__ = None  # or every failure keeps its frames, and their arrays, alive
        return reason


def _told(error: Exception) -> bool:
    """Whether the text alone says what is wrong (our own errors and those of arguments)."""
    return type(error).__module__.startswith("appliance.") or isinstance(error, ValueError)


@dataclass
class SinkRunner:
    """Runs one sink of a pipeline."""

    name: str
    sink: Sink
    alarm: Alarm
    activity: Activity = field(default_factory=Activity)
    latency: Latency = field(default_factory=Latency)  # last byte in -> handed to the sink
    n_frames: int = 0
    n_errors: int = 0

    def __post_init__(self) -> None:
        self._ended: deque[str] = deque(maxlen=_ENDED_KEPT)

    def has_ended(self, scan_id: str) -> bool:
        """Whether it has had the End of this scan, and nothing waits in it."""
        backlog = getattr(self.sink, "backlog", None)
        return scan_id in list(self._ended) and not (backlog and backlog())

    def process(self, message: Message) -> None:
        """Hand over; a sink that raises loses this message for itself alone, with an alarm."""
        self.activity.enter(self.name)
        try:
            self._hand_over(message)
        except Exception as error:
            self.n_errors += 1
            log.error("sink %s: %s", self.name, error, exc_info=None if _told(error) else error)
            self.alarm(f"sink {self.name}", str(error) or type(error).__name__)
            error.__traceback__ = None
        finally:
            self.activity.leave()
            if isinstance(message, End):
                self._ended.append(message.scan_id)

    def _hand_over(self, message: Message) -> None:
        if isinstance(message, Scan):
            self.sink.begin(message)
        elif isinstance(message, End):
            self.sink.end(message)
        elif message.role == "imaging" and message.is_image:
            self.n_frames += 1
            self.sink.frame(_on_host(message))
            self.latency.add_ns(time.monotonic_ns() - message.received_ns)

    def status(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "frames": self.n_frames,
            "errors": self.n_errors,
            "latency_ms": self.latency.summary_ms(),
            "latency_histogram": self.latency.histogram(),
            **self.sink.status(),
        }


def _on_host(frame: Frame) -> Frame:
    array = to_host(frame.array)
    original = None if frame.original is None else to_host(frame.original)
    if array is frame.array and original is frame.original:
        return frame
    return replace(frame, array=array, original=original)
