# SPDX-License-Identifier: Apache-2.0
"""Send live images to displays and navigation: OpenIGTLink IMAGE, STATUS and STRING, newest wins.

In:  (y, x) or (z, y, x) float32, host
Out: IMAGE per frame, and one of what was removed if asked for; STATUS live, stale or ended, and as keep-alive;
     STRING when marks or findings change

3D Slicer drops the time and the metadata of messages: what must be known is said in STATUS and STRING too.
Reference: OpenIGTLink protocol 2 and 3, http://openigtlink.org/developers/spec.html
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import Field

from appliance.context import Context
from appliance.frame_words import metadata, remarks
from appliance.frames import End, Frame, Scan
from appliance.igtl import Image, Message, Status, Text, encode
from appliance.igtl.messages import Content
from appliance.igtl.words import CONNECTION_LOST, OK, SHUTTING_DOWN
from appliance.igtl_server import DisplayServer, Packets
from appliance.imaging.quantise import ScanScale, to_uint16
from operators import OperatorSettings


def _as_volume(array: Any) -> Any:
    return array.reshape(-1, *array.shape[-2:])


class Settings(OperatorSettings):
    port: int = Field(18944, ge=0, le=65535, description="TCP port for displays. 0: any free one (see status).")
    bind: str = Field(
        "127.0.0.1",
        description="Address to listen on. OpenIGTLink has no sign-in and no encryption, so opening it to a network "
        "is for the site to decide: name the address of the network that the displays are on.",
    )
    device_name: str = Field("nearscan", min_length=1, max_length=20, description="Device name in every message.")
    removed_name: str = Field(
        "", max_length=20, description="Device name for images of what was removed, float32. Empty: they are not sent."
    )
    image_type: Literal["uint16", "float32"] = Field("uint16", description="Pixel type on the wire.")
    protocol: Literal[2, 3] = Field(
        2, description="3 adds metadata (age, models, marks) to every image; readers older than 2016 cannot take it."
    )
    keepalive_s: float = Field(0.5, ge=0.05, le=60, description="Longest time between two STATUS, in seconds.")
    stale_ms: float = Field(450, ge=50, le=60_000, description="Age of the newest image that is no longer live, in ms.")
    send_timeout_s: float = Field(5.0, ge=0.1, le=600, description="A display that takes no whole message is dropped.")
    max_displays: int = Field(32, ge=1, le=1000, description="Displays at a time; more are refused.")


class OpenIGTLink:
    """The sink: says what to send; the server does the sending."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings, self._alarm = settings, context.alarm
        self._running: set[str] = set()
        self._ended = Status(OK, "IDLE", "no scan running")
        self._scales: dict[str, ScanScale] = {}
        self._newest, self._newest_ns = "", 0  # what came last, and when (CLOCK_MONOTONIC)
        self._n_frames = self._n_clipped = 0
        self._said, self._said_s, self._told = "", 0.0, ""
        limits = (settings.send_timeout_s, settings.max_displays)
        self._server = DisplayServer(settings.bind, settings.port, self._packets, self._idle, *limits)

    def begin(self, scan: Scan) -> None:
        running = {key: scale for key, scale in self._scales.items() if key in self._running}
        self._scales = {**running, scan.scan_id: ScanScale()}  # replaced whole: the server's thread reads it
        self._newest, self._newest_ns = "scan began", time.monotonic_ns()
        self._running.add(scan.scan_id)
        self._server.wake()

    def frame(self, frame: Frame) -> None:
        self._n_frames += 1
        self._newest, self._newest_ns = "newest image", frame.received_ns
        self._server.put(frame)

    def end(self, end: End) -> None:
        self._running.discard(end.scan_id)
        code = OK if end.status == "complete" else CONNECTION_LOST
        self._ended = Status(code, "ENDED", f"scan ended: {end.status}{', ' + end.reason if end.reason else ''}")
        self._server.wake()

    def close(self) -> None:
        """Tell the displays and hang up."""
        self._server.close({"STATUS": self._message(Status(SHUTTING_DOWN, "SHUTDOWN", "nearscan stops"))})

    def status(self) -> dict[str, Any]:
        return {"frames": self._n_frames, "clipped_pixels": self._n_clipped, **self._server.status()}

    def _packets(self, frame: Frame) -> Packets:
        try:
            image = Image(self._pixels(frame), frame.affine)
            packets = {"IMAGE": self._message(image, frame.acquired_ns, metadata(frame))}
        except ValueError as error:
            self._alarm("openigtlink", str(error))
            return {}
        if self._settings.removed_name and frame.original is not None and frame.original.shape == frame.array.shape:
            removed = _as_volume(frame.original - frame.array)
            image, name = Image(removed, frame.affine), self._settings.removed_name
            packets["IMAGE removed"] = self._message(image, frame.acquired_ns, name=name)
        text = remarks(frame)
        if text != self._told:
            self._told = text
            packets = {"STRING": self._message(Text(text), frame.acquired_ns), **packets}
        return packets

    def _pixels(self, frame: Frame) -> Any:
        array = frame.array
        if self._settings.image_type == "uint16":
            array, n_clipped = to_uint16(array, self._scales.get(frame.scan_id, ScanScale()).of(array))
            self._n_clipped += n_clipped
        return _as_volume(array)

    def _message(
        self, content: Content, time_ns: int = 0, metadata: dict[str, str] | None = None, name: str = ""
    ) -> bytes:
        version = self._settings.protocol - 1  # protocol 3 came with header version 2
        device = name or self._settings.device_name
        return encode(Message(content, device, time_ns or time.time_ns(), version, metadata or {}))

    def _idle(self) -> tuple[Packets, float]:
        now_s, age_ms = time.monotonic(), (time.monotonic_ns() - self._newest_ns) / 1e6
        until_stale_s = (self._settings.stale_ms - age_ms) / 1000
        status = self._ended if not self._running else self._live(age_ms)
        packets = {}
        if status.name != self._said or now_s - self._said_s >= self._settings.keepalive_s:
            packets["STATUS"] = self._message(status)
            self._said, self._said_s = status.name, now_s
        wait_s = self._said_s + self._settings.keepalive_s - now_s
        return packets, min(wait_s, until_stale_s) if status.name == "LIVE" else wait_s

    def _live(self, age_ms: float) -> Status:
        if age_ms < self._settings.stale_ms:
            return Status(OK, "LIVE", f"live, {self._newest} {int(age_ms)} ms ago", int(age_ms))
        return Status(CONNECTION_LOST, "STALE", f"no live data since {int(age_ms)} ms", int(age_ms))


def make(settings: Settings, context: Context) -> OpenIGTLink:
    """Start listening. Raises ConfigError when the address is taken."""
    return OpenIGTLink(settings, context)
