# SPDX-License-Identifier: Apache-2.0
"""Records what live sources send, beside the live path: a copy of each piece goes to a writer thread.

Rule: `Tape.write` never waits. Where the disk does not keep up, is full or fails, the recording stops with a reason
and the stream goes on. A recording holds patient data: folder 0700, files 0600, no identity in their names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import secrets
import shutil
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from appliance.context import Context
from appliance.live_threads import let_live_threads_pass
from appliance.recording import MAGIC, MAX_PIECE_BYTES, Header, Kind, Protocol, encode_head
from appliance.settings import Model
from appliance.tables import size

FOLDER = "recordings"  # in site.data_dir; in it one folder for each pipeline
SUFFIX = ".recording"
QUEUE_BYTES = 64 << 20  # on their way to the disk: half a second of a fast cine of 8 coils
_ITEM_BYTES = 256  # what a queued piece costs besides its bytes
_SPARE_BYTES = 1024  # heads and end mark
_MOST_FILES = 1000  # of a pipeline: whoever only knocks at the port leaves small ones
_FLUSH_S = 3.0
_AGAIN_NS = 10 * 10**9  # after a recording was stopped


class Record(Model):
    """The setting `record` of a source."""

    max_gb: float = Field(
        10.0,
        gt=0,
        le=10_000,
        description="Most that the recordings of this pipeline take on the disk, in GB; the oldest are deleted for "
        "new ones.",
    )


Recorded = Annotated[
    Record | None,
    Field(description="Record what the source receives, for `nearscan replay`. Recordings hold patient data."),
]


class _File:
    """A recording being written."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.n_bytes, self._crc = path, 0, 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            self._append([MAGIC])
            self.add(Kind.HEADER, 0, header.model_dump_json().encode())
        except OSError:
            os.close(self._fd)
            path.unlink()
            raise

    def add(self, kind: Kind, since_ns: int, data: bytes) -> None:
        """Append a part whole, or raise OSError and leave what was there."""
        head, crc = encode_head(kind, since_ns, data, self._crc)
        self._append([head, data])
        self._crc = crc

    def close(self, since_ns: int, reason: str) -> None:
        """Set the end mark where the disk takes it; without one the file counts as cut."""
        with contextlib.suppress(OSError):
            self.add(Kind.END, since_ns, reason.encode())
        os.close(self._fd)

    def _append(self, parts: list[bytes]) -> None:
        n_bytes = sum(map(len, parts))
        try:
            n_written = os.writev(self._fd, parts)
            if n_written < n_bytes:  # nearly always a full disk, which the next call names
                self._append_rest(b"".join(parts)[n_written:])
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.n_bytes)
                os.lseek(self._fd, self.n_bytes, os.SEEK_SET)
            raise
        self.n_bytes += n_bytes

    def _append_rest(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]


class Tape:
    """One connection that is recorded. `write` and `close` are for the thread that reads it."""

    def __init__(self, recorder: Recorder, peer: str) -> None:
        self.peer, self.started_ns = peer, time.time_ns()
        self.stopped = ""  # why the recording ended before the connection did
        self.n_queued = 0  # bytes; written by the live thread
        self.n_done = 0  # bytes; written by the recorder's thread, as the next two
        self.file: _File | None = None
        self.is_over = False
        self._recorder = recorder
        self._begin_ns = time.monotonic_ns()

    def write(self, data: bytes | memoryview) -> None:
        """Record a piece as received now. `data` may be written over afterwards."""
        since_ns = time.monotonic_ns() - self._begin_ns
        for start in range(0, len(data), MAX_PIECE_BYTES):
            if not self.stopped:
                self._recorder.take(self, since_ns, data[start : start + MAX_PIECE_BYTES])

    def at_a_boundary(self) -> Tape:
        """Return the tape for what comes next on a connection that goes on for days, where a message has just ended.

        It is another one after a quarter of what is allowed, so that the oldest can go meanwhile, and a while after
        this one was stopped.
        """
        was_stopped = bool(self.stopped) and time.monotonic_ns() - self._begin_ns > _AGAIN_NS
        if not was_stopped and self.n_queued <= self._recorder.long_bytes:
            return self
        self.close()
        return Tape(self._recorder, self.peer)

    def close(self) -> None:
        """The connection is over."""
        self._recorder.take_end(self, time.monotonic_ns() - self._begin_ns)


class Recorder:
    """Records the connections of one source; one thread writes them all. With `record` None it does nothing."""

    def __init__(self, record: Record | None, protocol: Protocol, context: Context) -> None:
        self.folder = context.data_dir / FOLDER / context.pipeline
        self._protocol, self._pipeline, self._alarm = protocol, context.pipeline, context.alarm
        self._max_bytes = int(record.max_gb * 1e9) if record else 0
        self.long_bytes = self._max_bytes // 4  # see Tape.at_a_boundary
        # Results are refused below the reserve: twice as much stays free, so that no recording brings that about.
        self._keep_free_bytes = 2 * context.reserve_bytes
        self._queue: queue.SimpleQueue[tuple[Tape, int, bytes | None] | None] = queue.SimpleQueue()
        self._tapes: dict[Tape, None] = {}  # in the order of their first piece
        self._earlier: dict[Path, int] = {}  # finished recordings and their bytes, oldest first
        self._n_earlier_bytes = 0
        self._n_bytes = 0
        self._last_stop = ""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True) if record else None
        if self._thread:
            self._thread.start()

    def begin(self, peer: str) -> Tape | None:
        """Begin to record a connection, if there is anything to record; its file is made when something comes."""
        return Tape(self, peer) if self._thread else None

    def take(self, tape: Tape, since_ns: int, data: bytes | memoryview) -> None:
        """Queue a copy of a piece, or stop the recording where too much is queued. For `Tape`."""
        waiting = sum(one.n_queued - one.n_done for one in list(self._tapes))
        if waiting + len(data) > QUEUE_BYTES:
            self._stop(tape, f"the disk does not keep up, {waiting >> 20} MiB wait for it")
            return self.take_end(tape, since_ns)
        self._tapes.setdefault(tape)
        tape.n_queued += len(data) + _ITEM_BYTES
        self._queue.put((tape, since_ns, bytes(data)))

    def take_end(self, tape: Tape, since_ns: int) -> None:
        """Queue the end of a connection. For `Tape`."""
        self._queue.put((tape, since_ns, None))

    def status(self) -> dict[str, Any]:
        """Plain values under "recording"; nothing where nothing is to be recorded."""
        n_bytes = self._n_bytes
        n_running = sum(not tape.stopped for tape in list(self._tapes))
        own = {"running": n_running, "bytes": n_bytes, "last_stop": self._last_stop}
        return {"recording": own} if self._thread else {}

    def close(self) -> None:
        """Let what is queued reach the disk, but do not wait long for one that hangs."""
        self._queue.put(None)
        if self._thread:
            self._thread.join(_FLUSH_S)

    def _stop(self, tape: Tape, reason: str) -> None:
        tape.stopped = self._last_stop = reason
        self._alarm("recording", f"recording: stopped: {reason}; the stream itself goes on")

    def _run(self) -> None:
        let_live_threads_pass()
        while (item := self._queue.get()) is not None:
            tape, since_ns, data = item
            if data is None:
                self._end(tape, since_ns)
                self._tapes.pop(tape, None)
            else:
                if not tape.is_over:
                    self._write(tape, since_ns, data)
                tape.n_done += len(data) + _ITEM_BYTES

    def _write(self, tape: Tape, since_ns: int, data: bytes) -> None:
        try:
            if tape.file is None:
                tape.file = self._open(tape, len(data))
            self._make_room(len(data) + _SPARE_BYTES)
            tape.file.add(Kind.PIECE, since_ns, data)
            self._n_bytes += len(data)
        except OSError as error:
            self._stop(tape, error.strerror or "the disk failed")
            self._end(tape, since_ns)

    def _open(self, tape: Tape, n_bytes: int) -> _File:
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        in_use = {one.file.path for one in list(self._tapes) if one.file}
        self._earlier = {}
        for path in sorted(set(self.folder.glob(f"*{SUFFIX}")) - in_use):
            with contextlib.suppress(FileNotFoundError):  # somebody has just deleted it
                self._earlier[path] = path.stat().st_size
        self._n_earlier_bytes = sum(self._earlier.values())
        self._make_room(n_bytes + 2 * _SPARE_BYTES)
        when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(tape.started_ns // 10**9))
        path = (
            self.folder
            / f"{when}.{tape.started_ns // 10**6 % 1000:03d}Z-{self._protocol}-{secrets.token_hex(3)}{SUFFIX}"
        )
        header = Header(protocol=self._protocol, pipeline=self._pipeline, peer=tape.peer, started_ns=tape.started_ns)
        file = _File(path, header)
        self._alarm("recording", "")
        return file

    def _make_room(self, n_bytes: int) -> None:
        """Delete the oldest recordings until `n_bytes` more fit. Raises OSError, its text for people."""
        while reason := self._no_room(n_bytes):
            if not self._earlier:
                raise OSError(errno.ENOSPC, reason)
            oldest = next(iter(self._earlier))
            oldest.unlink(missing_ok=True)
            self._n_earlier_bytes -= self._earlier.pop(oldest)

    def _no_room(self, n_bytes: int) -> str:
        used = self._n_earlier_bytes + sum(one.file.n_bytes for one in list(self._tapes) if one.file)
        if used + n_bytes > self._max_bytes:
            return f"it has reached record.max_gb ({size(self._max_bytes)})"
        if len(self._earlier) >= _MOST_FILES:
            return f"there are {_MOST_FILES} recordings"
        free = shutil.disk_usage(self.folder).free
        if free - n_bytes < self._keep_free_bytes:
            kept = size(self._keep_free_bytes)
            return f"{size(free)} are free, and {kept} (twice buffer.reserve_gb) are kept for results"
        return ""

    def _end(self, tape: Tape, since_ns: int) -> None:
        if not tape.is_over:
            tape.is_over = True
            if tape.file is not None:
                tape.file.close(since_ns, tape.stopped)
                self._earlier[tape.file.path] = tape.file.n_bytes
                self._n_earlier_bytes += tape.file.n_bytes
                tape.file = None
