# SPDX-License-Identifier: Apache-2.0
"""Assemble a volume of what passes: freehand compounding of tracked ultrasound, stacked slices of MR and CT.

In:  (y, x) or (z, y, x) float32, host; of ultrasound only frames that have a place in the room
Out: live bus, topic "volume" (appliance/imaging/volume_message.py); IMAGE for OpenIGTLink displays, where a port is set

On a thread of its own, below the live ones. A scan that has ended is shown until the next one begins.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field, field_validator

from appliance.bus import Publisher
from appliance.context import Context
from appliance.frames import End, Frame, Scan
from appliance.igtl import Image, Message, Status, encode
from appliance.igtl.words import ASCII_NAME, OK, SHUTTING_DOWN
from appliance.imaging.volume_message import MOST_VOXELS, TOPIC, Volume, pack
from appliance.imaging.volume_of_scan import VolumeOfScan
from appliance.live.assemble_volumes import AssembleVolumes
from appliance.live.igtl_server import DisplayServer, Packets
from appliance.live_threads import let_live_threads_pass
from operators import OperatorSettings

_SEND_S, _MOST_DISPLAYS, _KEEPALIVE_S = 5.0, 32, 0.5


class Settings(OperatorSettings):
    spacing_mm: float = Field(0.5, ge=0.05, le=10, description="Edge of a voxel of compounded ultrasound, in mm.")
    method: Literal["linear", "nearest"] = Field(
        "linear", description="How ultrasound pixels go into voxels: into the eight around, or the one they are in."
    )
    clip_px: tuple[int, ...] = Field(
        (), description="Part of ultrasound pictures that is taken: x, y, width, height in pixels. Empty: all."
    )
    fill_voxels: int = Field(
        4, ge=0, le=16, description="Holes in compounded ultrasound are filled at the end, so far from measured voxels."
    )
    max_voxels: int = Field(
        32 << 20, ge=1 << 12, le=MOST_VOXELS, description="Largest volume; ultrasound takes 8 bytes a voxel, others 4."
    )
    max_rate_hz: float = Field(5, ge=0.1, le=60, description="Most states of the volume published per second.")
    queue_mb: int = Field(128, ge=1, le=4096, description="Frames that wait, in MiB; beyond, the oldest are left out.")
    port: int = Field(0, ge=0, le=65535, description="TCP port for OpenIGTLink displays. 0: none.")
    bind: str = Field("127.0.0.1", description="Address to listen on; OpenIGTLink has no sign-in.")
    device_name: str = Field(
        "volume", min_length=1, max_length=20, pattern=ASCII_NAME, description="Device name of the volume."
    )

    @field_validator("clip_px")
    @classmethod
    def _is_a_rectangle(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value and (len(value) != 4 or min(value) < 0 or 0 in value[2:]):
            raise ValueError(f"{value} is no rectangle; x, y, width, height in pixels are meant")
        return value


class VolumeSink:
    """The sink: hands over, and says where each state of the volume goes."""

    def __init__(self, settings: Settings, context: Context) -> None:
        from appliance.live.assemblers import (
            assembler_for,  # not above: numba is for who runs it, not who reads Settings
        )

        self._settings, self._said_s = settings, 0.0
        self._server: DisplayServer | None = None
        if settings.port:
            serve = (settings.bind, settings.port, self._packets, self._idle, _SEND_S, _MOST_DISPLAYS)
            with ThreadPoolExecutor(1, initializer=let_live_threads_pass) as below:  # the server's thread inherits it
                self._server = below.submit(DisplayServer, *serve).result()
        self._publisher = Publisher(context.run_dir, f"pipeline-{context.pipeline}", TOPIC)
        freehand = (settings.spacing_mm, settings.method, settings.clip_px, settings.fill_voxels)
        self._volumes = AssembleVolumes(
            lambda scan: VolumeOfScan(
                scan, context.pipeline, assembler_for(scan, settings.max_voxels, *freehand), "volume"
            ),
            self._publish,
            max_rate_hz=settings.max_rate_hz,
            most_bytes=settings.queue_mb << 20,
        )

    def begin(self, scan: Scan) -> None:
        self._volumes.put(scan)

    def frame(self, frame: Frame) -> None:
        self._volumes.put(frame)

    def end(self, end: End) -> None:
        self._volumes.put(end)

    def close(self) -> None:
        """Publish the last state, and stop."""
        self._volumes.close()
        self._publisher.close()
        if self._server:
            self._server.close({"STATUS": self._message(Status(SHUTTING_DOWN, "SHUTDOWN", "nearscan stops"))})

    def status(self) -> dict[str, Any]:
        return {**self._volumes.status(), **({"display": self._server.status()} if self._server else {})}

    def _publish(self, volume: Volume) -> None:
        self._publisher.publish(*pack(volume))
        if self._server and self._server.status()["displays"]:  # or it would be encoded for nobody
            self._server.put(volume)

    def _packets(self, volume: Volume) -> Packets:
        return {"IMAGE": self._message(Image(volume.array, volume.affine), volume.acquired_ns)}

    def _idle(self) -> tuple[Packets, float]:
        wait_s = self._said_s + _KEEPALIVE_S - time.monotonic()
        if wait_s > 0:
            return {}, wait_s
        self._said_s = time.monotonic()
        return {"STATUS": self._message(Status(OK, "VOLUME", "a volume, not live"))}, _KEEPALIVE_S

    def _message(self, content: Image | Status, time_ns: int = 0) -> bytes:
        return encode(Message(content, self._settings.device_name, time_ns or time.time_ns()))


def make(settings: Settings, context: Context) -> VolumeSink:
    """Start assembling. Raises ConfigError when an address is taken or the bus's path too long."""
    return VolumeSink(settings, context)
