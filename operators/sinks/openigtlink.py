# SPDX-License-Identifier: Apache-2.0
"""Send live images to displays and navigation: OpenIGTLink IMAGE, TRANSFORM, STATUS and STRING, newest wins.

In:  (y, x) or (z, y, x) float32, host; tracking where the images have a place in the room
Out: IMAGE per frame, one of what was removed if asked for, one TRANSFORM for each tracked tool; STATUS live, stale,
     tracking invalid or ended, and as keep-alive; STRING when marks or findings change

3D Slicer drops the time and the metadata of messages: what must be known is said in STATUS and STRING too.
Reference: OpenIGTLink protocol 2 and 3, http://openigtlink.org/developers/spec.html
"""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import Field, IPvAnyNetwork

from appliance.context import Context
from appliance.frames import End, Frame, Scan
from appliance.igtl import Status
from appliance.igtl.words import ASCII_NAME, CONNECTION_LOST, NOT_READY, OK, SHUTTING_DOWN
from appliance.live.igtl_frames import FramePackets, ImageType, tracking_fault
from appliance.live.igtl_server import DisplayServer, Packets
from operators import OperatorSettings


class Settings(OperatorSettings):
    port: int = Field(18944, ge=0, le=65535, description="TCP port for displays. 0: any free one (see status).")
    bind: str = Field(
        "127.0.0.1",
        description="Address to listen on. OpenIGTLink has no sign-in and no encryption, so opening it to a network "
        "is for the site to decide: name the address of the network that the displays are on.",
    )
    allow: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Addresses or networks (CIDR) of displays. Empty: all that reach `bind`.",
        examples=["192.0.2.0/28"],
    )
    device_name: str = Field(
        "nearscan", min_length=1, max_length=20, pattern=ASCII_NAME, description="Device name in every message."
    )
    removed_name: str = Field(
        "",
        pattern="^[ -~]{0,20}$",
        description="Device name for images of what was removed, float32. Empty: they are not sent.",
    )
    image_type: ImageType = Field(
        "auto",
        description="Pixels on the wire. auto: int16 (MR by one scale for a scan, CT in Hounsfield units) or uint8 "
        "(ultrasound), rounded; float32: as they are.",
    )
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
        self._settings = settings
        self._running: set[str] = set()
        self._ended = Status(OK, "IDLE", "no scan running")
        self._newest, self._newest_ns, self._fault = "", 0, ""  # what came last, when (CLOCK_MONOTONIC), its tracking
        self._n_frames = self._n_untracked = 0
        self._said, self._said_s = "", 0.0
        version = settings.protocol - 1  # protocol 3 came with header version 2
        names = (settings.device_name, settings.removed_name)
        self._packets = FramePackets(*names, settings.image_type, version, context.alarm)
        self._server = DisplayServer(
            *(settings.bind, settings.port, self._encode, self._idle, settings.send_timeout_s, settings.max_displays),
            types=("IMAGE", "TRANSFORM", "TDATA", "STATUS", "STRING"),
            allow=settings.allow,
        )

    def begin(self, scan: Scan) -> None:
        self._packets.begin(scan, self._running)
        self._newest, self._newest_ns, self._fault = "scan began", time.monotonic_ns(), ""
        self._running.add(scan.scan_id)
        self._server.wake()

    def frame(self, frame: Frame) -> None:
        self._n_frames += 1
        self._fault = tracking_fault(frame.tracking)
        self._n_untracked += bool(self._fault)
        self._newest, self._newest_ns = "newest image", frame.received_ns
        self._server.put(frame)

    def end(self, end: End) -> None:
        self._running.discard(end.scan_id)
        code = OK if end.status == "complete" else CONNECTION_LOST
        self._ended = Status(code, "ENDED", f"scan ended: {end.status}{', ' + end.reason if end.reason else ''}")
        self._server.wake()

    def close(self) -> None:
        """Tell the displays and hang up."""
        self._server.close({"STATUS": self._packets.message(Status(SHUTTING_DOWN, "SHUTDOWN", "nearscan stops"))})

    def status(self) -> dict[str, Any]:
        counts = {"clipped_pixels": self._packets.n_clipped, "untracked_frames": self._n_untracked}
        return {"frames": self._n_frames, **counts, **self._server.status()}

    def _encode(self, frame: Frame) -> Packets:
        before, _ = self._idle()  # a change of state goes out in front of the image that it is about
        return {**before, **self._packets.encode(frame)}

    def _idle(self) -> tuple[Packets, float]:
        now_s, age_ms = time.monotonic(), (time.monotonic_ns() - self._newest_ns) / 1e6
        name, packets = self._state(age_ms), {}
        if name != self._said or now_s - self._said_s >= self._settings.keepalive_s:
            packets["STATUS"] = self._packets.message(self._status(name, age_ms))
            self._said, self._said_s = name, now_s
        wait_s = self._said_s + self._settings.keepalive_s - now_s
        if name == "STALE":
            self._server.forget_frame()  # who reads on now is not shown an image of before as if it were new
        elif self._running:
            wait_s = min(wait_s, (self._settings.stale_ms - age_ms) / 1000)
        return packets, wait_s

    def _state(self, age_ms: float) -> str:
        if not self._running:
            return self._ended.name
        if age_ms >= self._settings.stale_ms:
            return "STALE"
        return "TRACKING INVALID" if self._fault else "LIVE"

    def _status(self, name: str, age_ms: float) -> Status:
        age = int(age_ms)
        if name == "STALE":
            return Status(CONNECTION_LOST, name, f"no live data since {age} ms", age)
        if name == "TRACKING INVALID":
            return Status(NOT_READY, name, f"tracking invalid: {self._fault}", age)
        return Status(OK, name, f"live, {self._newest} {age} ms ago", age) if name == "LIVE" else self._ended


def make(settings: Settings, context: Context) -> OpenIGTLink:
    """Start listening. Raises ConfigError when the address is taken."""
    return OpenIGTLink(settings, context)
