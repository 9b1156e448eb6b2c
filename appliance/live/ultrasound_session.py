# SPDX-License-Identifier: Apache-2.0
"""Receive ultrasound images and poses by OpenIGTLink, and hand on the newest image with its place.

The clients' threads match as messages come; whoever calls `next` gets the newest image that is settled. What was
settled and not fetched when the next one came is left out, and counted: an old live image is worth nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from appliance.frames import Affine, Array, Tracking
from appliance.igtl import Image, ImagePart, Message, Pace, QuaternionData, TrackingData, Transform
from appliance.igtl.queries import start
from appliance.igtl.tracking import TOOL_6D, TRACKER
from appliance.live.igtl_client import Client
from appliance.live.recorder import Recorder
from appliance.ultrasound.match_poses import Chain, Limits, Matched, MatchPoses
from appliance.ultrasound.place_image import image_in_lps, pose_fault, split
from appliance.ultrasound.poses import from_quaternion

Address = tuple[str, int]

_NAME_BYTES = 20  # of a device on the wire; PLUS cuts longer names
_POSES, _IMAGES = ("TRANSFORM", "TDATA", "QTDATA"), ("IMAGE",)
_MOST_OTHERS = 16
_EXACT, _SAME_SIZE = 1e-6, 0.02
_EVERY_MS = 10  # how often a tracker is asked for its tools


@dataclass(frozen=True, eq=False)
class Picture:
    """One IMAGE. `affine` is its geometry as sent, index to LPS mm."""

    array: Array
    affine: Affine
    received_ns: int


@dataclass(frozen=True)
class SessionOptions:
    """What is received from where. Without `chain` images have no pose, or, `placed`, bring their own."""

    server: Address
    tracker: Address | None  # None: the server sends the poses, too
    image: str  # device name; empty: of the first image that comes
    placed: bool
    chain: Chain | None
    limits: Limits
    max_bytes: int
    silence_s: float


class Session:
    """Connects from `start` to `close`. `next` is for one thread."""

    def __init__(self, options: SessionOptions, on_state: Callable[[str, str], None], recorder: Recorder) -> None:
        self._options, self._on_state, self._recorder = options, on_state, recorder
        self._match = MatchPoses(options.chain, options.limits)
        self._changed = threading.Condition()
        self._slot: Matched | None = None
        self._lost = ""
        self._image = options.image[:_NAME_BYTES]
        self._others: set[str] = set()
        self.n_images = self.n_left_out = 0
        self._clients = {"server": self._client("server", options.server, _IMAGES + _POSES * (not options.tracker))}
        if options.tracker:
            self._clients["tracker"] = self._client("tracker", options.tracker, _POSES)

    def start(self) -> None:
        """Begin to connect."""
        for client in self._clients.values():
            client.start()

    def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            client.close()
        self._recorder.close()

    def next(self, timeout_s: float) -> tuple[Matched | None, str]:
        """Return (image, lost): the newest image that has its pose or will not get one, None after `timeout_s`; and
        why the connection that brings the images was lost after it, if it was."""
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        with self._changed:
            while True:
                now_ns = time.monotonic_ns()
                self._settle(now_ns)
                if self._slot is not None or self._lost or now_ns >= deadline_ns:
                    break
                wait_ns = self._match.wait_ns(now_ns)
                self._changed.wait((deadline_ns - now_ns if wait_ns is None else wait_ns + 1000) / 1e9)
            found, lost, self._slot, self._lost = self._slot, self._lost, None, ""
            return found, lost

    def status(self) -> dict[str, Any]:
        """Plain values."""
        with self._changed:
            return {
                "connections": {name: client.status() for name, client in self._clients.items()},
                "received": self.n_images,
                "left_out": self.n_left_out,
                "skew_ms": round(self._match.skew_ns / 1e6, 1),
                "clock_jumps": self._match.n_jumps,
                "invalid_poses": self._match.n_invalid_poses,
                "other_images": sorted(self._others),
                **self._recorder.status(),
            }

    def _client(self, name: str, address: Address, wanted: Sequence[str]) -> Client:
        return Client(
            *address,
            on_message=self._received,
            on_state=lambda state: self._state(name, state),
            wanted=wanted,
            queries=(Message(start("TDATA", Pace(_EVERY_MS))),) if name == "tracker" else (),
            silence_s=self._options.silence_s,
            max_body_bytes=self._options.max_bytes,
            recorder=self._recorder,
        )

    def _state(self, name: str, state: str) -> None:
        if name == "server" and state.startswith("lost"):
            with self._changed:
                self._settle(time.monotonic_ns(), at_once=True)  # what waits for a pose belongs before the end
                self._lost = state
                self._image = self._options.image[:_NAME_BYTES]
                self._changed.notify()
        self._on_state(name, state)

    def _received(self, message: Message, received_ns: int) -> None:
        with self._changed:
            if isinstance(message.content, Image):
                self._take_image(message, message.content, received_ns)
            elif isinstance(message.content, ImagePart):
                self._leave(f"{message.device_name} (parts)")
            else:
                for name, matrix, fault in _poses(message):
                    self._match.pose(name, matrix, message.time_ns, received_ns, fault)
            self._settle(time.monotonic_ns())
            self._changed.notify()

    def _take_image(self, message: Message, image: Image, received_ns: int) -> None:
        self._image = self._image or message.device_name
        if message.device_name != self._image:
            return self._leave(message.device_name)
        self.n_images += 1
        picture = Picture(image.array, image.affine, received_ns)
        place = _place_of(message, image.affine) if self._options.placed else None
        self._match.image(picture, message.time_ns, received_ns, place, _not_calibrated(self._options.chain, image))

    def _leave(self, name: str) -> None:
        if len(self._others) < _MOST_OTHERS:
            self._others.add(name)

    def _settle(self, now_ns: int, *, at_once: bool = False) -> None:
        for found in self._match.take(now_ns, at_once=at_once):
            self.n_left_out += self._slot is not None
            self._slot = found


def _not_calibrated(chain: Chain | None, image: Image) -> str:
    """Why the calibration is not for this picture; a pixel of exactly 1 mm is what senders say who do not know."""
    if chain is None:
        return ""
    size_px, pixel_mm = image.array.shape[2:0:-1], np.linalg.norm(image.affine[:3, :2], axis=0)
    if chain.size_px and size_px != chain.size_px:
        return f"the picture has {size_px[0]} x {size_px[1]} pixels, the calibration is for {chain.size_px}"
    known = np.abs(pixel_mm - 1).max() > _EXACT
    if known and np.abs(pixel_mm / np.array(chain.pixel_mm) - 1).max() > _SAME_SIZE:
        sizes = " and ".join(f"{x:.3f} x {y:.3f} mm" for x, y in (pixel_mm, chain.pixel_mm))
        return f"pixel sizes of picture and calibration are {sizes}; calibrate for this depth"
    return ""


def _said(message: Message, name: str = "Transform") -> str:
    """What its sender says of a pose (PLUS, in the metadata of protocol 3), where that is not good."""
    status = message.metadata.get(f"{name}Status", "OK")
    return "" if status == "OK" else f"its sender says {status[:20]}"


def _poses(message: Message) -> Iterator[tuple[str, Affine, str]]:
    """Name, matrix as on the wire, and what its sender has against it, of each pose in a message."""
    content = message.content
    if isinstance(content, Transform):
        yield message.device_name, content.matrix, _said(message)
    elif isinstance(content, TrackingData):
        for tool in content.tools:
            yield tool.name, tool.matrix, _said(message, tool.name) or _turned(tool.kind)
    elif isinstance(content, QuaternionData):
        for each in content.tools:
            x, y, z, w = each.quaternion
            pose = from_quaternion(np.array([w, x, y, z]), each.position)
            yield each.name, pose, _said(message, each.name) or _turned(each.kind)


def _turned(kind: int) -> str:
    return "" if kind in (TRACKER, TOOL_6D) else "it has a tip and no orientation"


def _place_of(message: Message, affine: Affine) -> tuple[Tracking, Affine | None]:
    """The place that an image brings with it."""
    try:
        rigid_ras, _ = split(image_in_lps(affine))
        fault = _said(message) or pose_fault(rigid_ras)
    except ValueError as error:
        fault = str(error)
    return (Tracking(None, f"the image's own: {fault}"), None) if fault else (Tracking(split(affine)[0]), affine)
