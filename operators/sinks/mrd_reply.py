# SPDX-License-Identifier: Apache-2.0
"""Images back to the scanner that sent the data: every one, in order, then CLOSE.

In:  (y, x) float32, any device
Out: MRD IMAGE with meta, TEXT with the reason when the scan is not complete, CLOSE

Reference: MRD streaming protocol, https://ismrmrd.readthedocs.io. One writer thread for each scan. A scanner that does
not read within the source's `send_timeout_s` gets nothing more, with an alarm; the scan goes on for the other sinks.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any, Literal

from pydantic import Field

from appliance.context import Context, Reply
from appliance.errors import PeerError
from appliance.frames import End, Frame, Scan
from appliance.mrd.answer import AnswerEncoder, place_of
from operators import OperatorSettings

_ALARM = "mrd_reply"
_FULL = 32  # images waiting for one scanner: at this many the source stops reading
_CLOSE_S = 10.0


class Settings(OperatorSettings):
    data_type: Literal["uint16", "float32"] = Field(
        "uint16",
        description="Pixels sent. uint16: one scale for the whole scan, with room for 8 times the first maximum.",
    )
    series_suffix: str = Field(
        "nearscan", min_length=1, max_length=32, description="What the scanner appends to the series' description."
    )


class _Writer:
    """The way back of one scan, on a thread of its own."""

    def __init__(self, reply: Reply, settings: Settings, context: Context) -> None:
        self._reply = reply
        self._encoder = AnswerEncoder(settings.data_type, settings.series_suffix)
        self._context = context
        self._queue: SimpleQueue[Frame | End] = SimpleQueue()
        self.n_sent = 0
        self.given_up = ""
        self.thread = threading.Thread(target=self._run, name="mrd_reply", daemon=True)
        self.thread.start()

    @property
    def backlog(self) -> float:
        return 0.0 if self.given_up else self._queue.qsize() / _FULL

    def put(self, item: Frame | End) -> None:
        self._queue.put(item)

    def _run(self) -> None:
        status, reason = "aborted", "the answer to the scanner failed, see the log"
        try:
            while isinstance(item := self._queue.get(), Frame):
                if not self.given_up:
                    self._send(item)
            status, reason = item.status, item.reason
        finally:
            self._reply.close(status, "; ".join(filter(None, (reason, self.given_up))))

    def _send(self, frame: Frame) -> None:
        try:
            self._reply.send(self._encoder.encode(frame))
            self.n_sent += 1
        except PeerError as error:
            self.given_up = f"images from number {frame.sequence + 1} on were not sent"
            self._context.alarm(_ALARM, f"{error}; {self.given_up}")


class MrdReply:
    """See `operators.Sink`."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._writers: dict[str, _Writer] = {}
        self._counts = {"scans": 0, "images_sent": 0, "given_up": 0}
        context.reply_wanted.set()

    def begin(self, scan: Scan) -> None:
        """Take the way back; a scan that did not come over MRD has none."""
        self._retire()
        reply = self._context.replies.pop(scan.scan_id, None)
        if reply is None:
            self._context.alarm(_ALARM, "mrd_reply: this scan has no scanner to answer; use it with the mrd source")
            return
        self._context.alarm(_ALARM, "")
        self._counts["scans"] += 1
        self._writers[scan.scan_id] = _Writer(reply, self._settings, self._context)

    def frame(self, frame: Frame) -> None:
        """Queue one image."""
        place_of(frame)
        if writer := self._writers.get(frame.scan_id):
            writer.put(frame)

    def end(self, end: End) -> None:
        """Let the writer finish and close."""
        if writer := self._writers.get(end.scan_id):
            writer.put(end)

    def backlog(self) -> float:
        """How full the fullest queue is; at 1 the source stops reading."""
        return max((writer.backlog for writer in list(self._writers.values())), default=0.0)

    def status(self) -> dict[str, Any]:
        """Counts."""
        writers = list(self._writers.values())
        sent = self._counts["images_sent"] + sum(writer.n_sent for writer in writers)
        given_up = self._counts["given_up"] + sum(bool(writer.given_up) for writer in writers)
        return {"scans": self._counts["scans"], "images_sent": sent, "given_up": given_up}

    def close(self) -> None:
        """Wait for the writers to finish."""
        for writer in list(self._writers.values()):
            writer.thread.join(_CLOSE_S)

    def _retire(self) -> None:
        for scan_id, writer in list(self._writers.items()):
            if not writer.thread.is_alive():
                self._counts["images_sent"] += writer.n_sent
                self._counts["given_up"] += bool(writer.given_up)
                del self._writers[scan_id]


def make(settings: Settings, context: Context) -> MrdReply:
    """Make the sink."""
    return MrdReply(settings, context)
