# SPDX-License-Identifier: Apache-2.0
"""Assemble volumes on a thread below the live ones, behind a bounded queue.

The newest scan is assembled. Its state is published at most so often, and never so that more than half of the time
goes into it; a scan that has ended is repeated now and then, for who comes later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from appliance.frames import End, Frame, Message, Scan
from appliance.imaging.volume_message import Volume
from appliance.imaging.volume_of_scan import VolumeOfScan
from appliance.live_threads import let_live_threads_pass

_AGAIN_S = 2.0
_FLUSH_S = 5.0


class AssembleVolumes:
    """`put` hands over and returns at once; `publish` is called with each state, on the thread of this object.

    Parameters
    ----------
    begin
        Makes the volume of a scan.
    most_bytes
        Of frames that wait; beyond, the oldest are left out, and counted in the volume's marks.
    """

    def __init__(
        self,
        begin: Callable[[Scan], VolumeOfScan],
        publish: Callable[[Volume], None],
        *,
        max_rate_hz: float,
        most_bytes: int,
    ) -> None:
        self._begin, self._publish = begin, publish
        self._period_s, self._most_bytes = 1 / max_rate_hz, most_bytes
        self._changed = threading.Condition()
        self._queue: deque[Message] = deque()
        self._n_bytes = self._n_behind = self._n_untold = 0
        self._closing = False
        self._current: VolumeOfScan | None = None
        self._last: Volume | None = None
        self._n_published, self._due_s = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="volume", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        """Take a message. Raises RuntimeError when the thread has ended."""
        if not self._thread.is_alive():
            raise RuntimeError("volume: its thread has ended; restart the pipeline")
        with self._changed:
            self._queue.append(message)
            self._n_bytes += _size(message)
            while self._n_bytes > self._most_bytes:
                self._drop_oldest()
            self._changed.notify()

    def close(self) -> None:
        """Work off what waits, publish the last state, and end; within a deadline."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(_FLUSH_S)

    def status(self) -> dict[str, Any]:
        """Plain values; frames and what is left out are those of the newest scan."""
        current, last = self._current, self._last
        return {
            "published": self._n_published,
            "assembled": current.n_frames if current else 0,
            "left_out": current.n_left_out if current else 0,
            "behind": self._n_behind,
            "shape": list(last.array.shape) if last else [],
            "filled": round(last.filled, 4) if last else 0.0,
        }

    def _drop_oldest(self) -> None:
        """Leave out the oldest frame; a beginning and an end stay."""
        index = next(n for n, message in enumerate(self._queue) if isinstance(message, Frame))
        self._n_bytes -= _size(self._queue[index])
        del self._queue[index]
        self._n_behind += 1
        self._n_untold += 1

    def _run(self) -> None:
        let_live_threads_pass()
        while True:
            with self._changed:
                while not (self._queue or self._closing or self._wait_s() <= 0):
                    self._changed.wait(self._wait_s())
                message = self._queue.popleft() if self._queue else None
                self._n_bytes -= _size(message)
                last = self._closing and not self._queue
            self._take(message)
            self._tell_behind()
            if last or self._wait_s() <= 0:
                self._show()
            if last:
                return

    def _take(self, message: Message | None) -> None:
        current = self._current
        if isinstance(message, Scan):
            if current and current.changed:
                self._show()
            self._current, self._last = self._begin(message), None
        elif current is None or message is None or message.scan_id != current.scan_id:
            return
        elif isinstance(message, End):
            current.end()
            self._due_s = 0.0
        else:
            current.add(message)

    def _tell_behind(self) -> None:
        if self._current is not None and self._n_untold:
            with self._changed:
                n_untold, self._n_untold = self._n_untold, 0
            self._current.leave_out("they came faster than they can be assembled", n_untold)

    def _wait_s(self) -> float:
        """How long until there is something to publish."""
        changed = self._current is not None and self._current.changed
        again_s = _AGAIN_S if self._last is not None and not changed else 0.0
        return self._due_s + again_s - time.monotonic() if changed or self._last is not None else _AGAIN_S

    def _show(self) -> None:
        began_s = time.monotonic()
        changed = self._current is not None and self._current.changed
        state = self._current.volume() if changed else self._last  # type: ignore[union-attr]
        if state is not None:
            self._last = state
            self._publish(state)
            self._n_published += 1
        now_s = time.monotonic()
        self._due_s = now_s + max(self._period_s, now_s - began_s)


def _size(message: Message | None) -> int:
    return int(message.array.nbytes) if isinstance(message, Frame) else 0
