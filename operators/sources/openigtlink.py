# SPDX-License-Identifier: Apache-2.0
"""Ultrasound from an OpenIGTLink server (PLUS, a video server), with the poses of the probe where it is tracked.

In:  OpenIGTLink IMAGE, grey or RGB, one plane; TRANSFORM, TDATA or QTDATA
Out: (y, x) float32, host; tracking and affine in LPS mm of the reference, or a mark that says why there is none

Images and poses are matched by their time stamps (appliance/ultrasound/match_poses.py). One clip is one scan: from the
first image until none comes for `silence_s`, the size changes or the connection is lost. Newest wins.
Reference: OpenIGTLink protocol 2 and 3; PLUS, https://plustoolkit.github.io
"""

from __future__ import annotations

import threading
import time
from typing import Any

from pydantic import Field, model_validator

from appliance.context import Context
from appliance.frames import Message
from appliance.live.recorder import Recorded, Recorder
from appliance.live.ultrasound_session import Session, SessionOptions
from appliance.ultrasound.clip import Clip
from appliance.ultrasound.match_poses import Chain, Limits, Matched
from appliance.ultrasound.place_image import calibration
from operators import Emit, OperatorSettings


class Settings(OperatorSettings):
    host: str = Field(description="Address of the OpenIGTLink server that sends the images.", examples=["192.0.2.30"])
    port: int = Field(18944, ge=1, le=65535, description="Its TCP port.")
    image: str = Field("", description="Device name of the images, e.g. Image_Reference. Empty: the first that comes.")
    placed: bool = Field(
        False, description="The images bring their place in the reference (PLUS: EmbeddedTransformToFrame Reference)."
    )
    probe: str = Field("", description="Transform of the probe, e.g. ProbeToTracker. Empty: the video is not tracked.")
    reference: str = Field(
        "", description="Transform of the reference, e.g. ReferenceToTracker. Empty: `probe` leads to the reference."
    )
    tools: dict[str, str] = Field(
        default_factory=dict,
        description="Other tools and their transforms, e.g. {Stylus: StylusToTracker}.",
        examples=[{}],
    )
    image_to_probe: tuple[float, ...] = Field(
        (), description="Calibration: 12 or 16 numbers row by row, pixel (or mm, with `pixel_mm`) to probe, as in PLUS."
    )
    image_px: tuple[int, ...] = Field((), description="Size that the calibration is for, x and y. Empty: not checked.")
    pixel_mm: tuple[float, ...] = Field(
        (), description="Size of a pixel in mm, x and y. Empty: as the calibration or the images say."
    )
    tracker_host: str = Field("", description="Where the poses come from. Empty: from `host`.")
    tracker_port: int = Field(18944, ge=1, le=65535, description="TCP port of `tracker_host`.")
    max_skew_ms: float = Field(50, gt=0, le=1000, description="Largest difference in delay of images and poses, in ms.")
    max_gap_ms: float = Field(100, gt=0, le=1000, description="Longest time between two poses around an image, in ms.")
    wait_ms: float = Field(50, ge=0, le=200, description="Longest time an image waits for the pose after it, in ms.")
    max_late_ms: float = Field(200, gt=0, le=10_000, description="Delay beyond the usual that marks an image, in ms.")
    silence_s: float = Field(5.0, gt=0, le=3600, description="A clip without an image for so long has ended, in s.")
    max_image_mb: int = Field(16, ge=1, le=1024, description="Largest image taken, in MiB.")
    record: Recorded = None

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        if self.placed and (self.probe or self.tracker_host):
            raise ValueError("placed images need no poses; take `probe` and `tracker_host` out, or `placed`")
        if bool(self.probe) != bool(self.image_to_probe) or ((self.reference or self.tools) and not self.probe):
            raise ValueError("`probe` and `image_to_probe` go together, and `reference` and `tools` need both")
        for name, sizes in {"pixel_mm": self.pixel_mm, "image_px": self.image_px}.items():
            if len(sizes) not in (0, 2) or not all(0 < size < 65536 for size in sizes):
                raise ValueError(f"{name} {sizes} is not two sizes, of x and y")
        self.chain()
        return self

    def chain(self) -> Chain | None:
        """What leads from the image to the reference; names as long as the wire's. Raises ValueError."""
        if not self.probe:
            return None
        tools = {name: transform[:20] for name, transform in self.tools.items()}
        to_probe = calibration(self.image_to_probe, self.pixel_mm)
        return Chain(self.probe[:20], to_probe, self.reference[:20], tools, self.image_px)

    def options(self) -> SessionOptions:
        """The same for the session."""
        skew_ns, gap_ns, wait_ns = (int(ms * 1e6) for ms in (self.max_skew_ms, self.max_gap_ms, self.wait_ms))
        tracker = (self.tracker_host, self.tracker_port) if self.tracker_host else None
        limits = Limits(skew_ns, gap_ns, wait_ns)
        chain, n_bytes = self.chain(), self.max_image_mb << 20
        server = (self.host, self.port)
        return SessionOptions(server, tracker, self.image, self.placed, chain, limits, n_bytes, self.silence_s)


class OpenIGTLinkSource:
    """See `operators.Source`."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings, self._context = settings, context
        source, chain = f"openigtlink {settings.host}:{settings.port}", settings.chain()
        pixel_mm = chain.pixel_mm if chain else settings.pixel_mm
        self._clip = Clip(context.pipeline, source, pixel_mm, int(settings.max_late_ms * 1e6))
        self._session = Session(settings.options(), self._told, Recorder(settings.record, "openigtlink", context))
        self._stopping = threading.Event()
        self._n_refused, self._shown_s = 0, 0.0

    def run(self, emit: Emit) -> None:
        """Receive until stopped."""
        self._session.start()
        while not self._stopping.is_set():
            matched, lost = self._session.next(0.1)
            for message in self._show(matched) if matched else ():
                emit(message)
            if lost or time.monotonic() - self._shown_s > self._settings.silence_s:
                reason = lost or f"no image for {self._settings.silence_s:g} s"
                for message in self._clip.end("aborted" if lost else "complete", reason):
                    emit(message)
        self._session.close()
        for message in self._clip.end("aborted", "the pipeline stops"):
            emit(message)

    def stop(self) -> None:
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """Counts; `last_reason` is why the newest image without a place has none."""
        clip = self._clip
        own = {"sessions": int(clip.running), "scans": clip.n_scans, "frames": clip.n_frames}
        own |= {"frames_without_place": clip.n_without_place, "refused_images": self._n_refused}
        return {**own, "last_reason": clip.last_reason, **self._session.status()}

    def _told(self, name: str, state: str) -> None:
        text = "" if state == "connected" else f"openigtlink source: {name} {state}"
        self._context.alarm(f"openigtlink {name}", text)

    def _show(self, matched: Matched) -> list[Message]:
        try:
            messages = self._clip.show(matched)
        except ValueError as error:
            self._n_refused += 1
            self._context.alarm("openigtlink images", f"openigtlink source: {error}")
            return []
        self._shown_s = time.monotonic()
        self._context.alarm("openigtlink images", "")
        return messages


def make(settings: Settings, context: Context) -> OpenIGTLinkSource:
    """Make the source; it connects from `run` on."""
    return OpenIGTLinkSource(settings, context)
