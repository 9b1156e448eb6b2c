# SPDX-License-Identifier: Apache-2.0
"""What OpenIGTLink displays are sent of a frame: its image, the poses of its tools, and what must be known of it.

Pixels keep their meaning: Hounsfield units and the grey levels of an ultrasound display go out as they are, rounded;
MR magnitudes, which have no unit, by one scale for the whole scan, which the metadata say. What does not fit is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from appliance.frames import Frame, Scan, Tracking
from appliance.igtl import Content, Image, Message, Text, Tool, TrackingData, Transform, encode
from appliance.igtl.rigid import rigid_fault, to_ras
from appliance.igtl.words import fit
from appliance.imaging.quantise import FEWEST_LEVELS, ScanScale, to_integers
from appliance.live.frame_words import metadata, remarks
from appliance.live.igtl_server import Packets

ImageType = Literal["auto", "float32"]
_UNTRACKED = "_untracked"
_MR_SCALE = 0.5  # of ScanScale's: int16 has half the range, and the first maximum may still grow eightfold
_AUTO: dict[str, type[np.integer]] = {"MR": np.int16, "CT": np.int16, "US": np.uint8}


def untracked_name(device_name: str) -> str:
    """Return the name for images that have no place in the room: at most 20 bytes."""
    return fit(device_name, 20 - len(_UNTRACKED)).decode("utf-8") + _UNTRACKED


def tracking_fault(tracking: Tracking | None) -> str:
    """Return why a frame's poses are not valid; "" where they are, or where nothing is tracked."""
    if tracking is None:
        return ""
    if tracking.image_to_reference is None:
        return tracking.reason or "no pose"
    return rigid_fault(tracking.image_to_reference)


class FramePackets:
    """Turns frames into packets, on the server's thread.

    Parameters
    ----------
    device_name, removed_name
        Of the images, and of images of what was removed ("" : they are not sent).
    image_type
        "auto": int16 for MR and CT, uint8 for ultrasound; "float32": the numbers as they are.
    version
        Header version; 2 brings metadata.
    alarm
        Told what cannot be sent.
    """

    def __init__(
        self,
        device_name: str,
        removed_name: str,
        image_type: ImageType,
        version: int,
        alarm: Callable[[str, str], None],
    ) -> None:
        self._name, self._removed_name, self._image_type = device_name, removed_name, image_type
        self._version, self._alarm = version, alarm
        self._scans: dict[str, tuple[str, ScanScale]] = {}  # modality and scale by scan
        self._told = ""
        self._alarms: dict[str, str] = {}
        self.n_clipped = 0

    def begin(self, scan: Scan, running: set[str]) -> None:
        """Take a scan; forget those that do not run any more."""
        kept = {key: value for key, value in self._scans.items() if key in running}
        self._scans = {**kept, scan.scan_id: (scan.modality, ScanScale())}  # replaced whole: another thread reads it

    def message(
        self, content: Content, time_ns: int = 0, metadata: dict[str, str] | None = None, name: str = ""
    ) -> bytes:
        """Return the bytes of a message under our name."""
        told = metadata or {}
        return encode(Message(content, name or self._name, time_ns or time.time_ns(), self._version, told))

    def encode(self, frame: Frame) -> Packets:
        """Return what is sent of a frame; nothing, and an alarm, where OpenIGTLink cannot hold it."""
        try:
            fault = tracking_fault(frame.tracking)
            image, words, scale = self._image(frame)
            told = {**metadata(frame), "scale": f"{scale:.9g}"}
            name = untracked_name(self._name) if fault else self._name
            packets = {**self._words(frame, words), **({} if fault else self._poses(frame))}
            packets["IMAGE"] = self.message(image, frame.acquired_ns, told, name)
        except ValueError as error:
            self._raise_alarm("openigtlink", str(error))
            return {}
        self._raise_alarm("openigtlink", "")
        if self._removed_name and not fault and frame.original is not None:
            packets |= self._removed(frame, frame.original)
        return packets

    def _image(self, frame: Frame) -> tuple[Image, list[str], float]:
        if frame.array.dtype.kind not in "iuf":
            raise ValueError(f"openigtlink: pixels are {frame.array.dtype}, not numbers; put reconstruct before it")
        modality, scan_scale = self._scans.get(frame.scan_id, ("MR", ScanScale()))
        array, scale, words = frame.array, 1.0, []
        if self._image_type == "auto":
            dtype = _AUTO[modality]
            if modality == "MR":
                scale = _MR_SCALE * scan_scale.of(array)
            array, n_clipped = to_integers(array, scale, dtype)
            self.n_clipped += n_clipped
            if n_clipped:
                words.append(f"CLIPPED: {n_clipped} pixels lie outside what {np.dtype(dtype)} holds at this scale")
            if modality == "MR" and 0 < (largest := int(array.max(initial=0))) < FEWEST_LEVELS:
                words.append(f"COARSE: only {largest} grey levels are left by the scale of the scan's first image")
        return Image(_as_volume(array), frame.affine), words, scale

    def _words(self, frame: Frame, words: list[str]) -> Packets:
        lines = "\n".join([*words, remarks(frame)] if words else [remarks(frame)])
        if lines == self._told:
            return {}
        self._told = lines
        return {"STRING": self.message(Text(lines), frame.acquired_ns)}

    def _poses(self, frame: Frame) -> Packets:
        """One TRANSFORM for each valid tool, and all of them as TDATA for who asks for it."""
        packets, tools, faults = {}, [], []
        for name, to_reference in (frame.tracking.tools if frame.tracking else {}).items():
            matrix, full_name = to_ras(to_reference), f"{name}ToReference"
            fault = rigid_fault(matrix)
            if len(full_name.encode()) > 20:
                fault = f"its name {full_name!r} is longer than 20 bytes; shorten it in the source"
            if fault:
                faults.append(f"openigtlink: tool {name!r} is not sent: {fault}")
                continue
            packets[f"TRANSFORM {name}"] = self.message(Transform(matrix), frame.acquired_ns, name=full_name)
            tools.append(Tool(name, matrix))
        self._raise_alarm("openigtlink tools", "; ".join(faults))
        if tools:
            packets["TDATA"] = self.message(TrackingData(tuple(tools)), frame.acquired_ns)
        return packets

    def _raise_alarm(self, key: str, text: str) -> None:
        if text != self._alarms.get(key, ""):
            self._alarms[key] = text
            self._alarm(key, text)

    def _removed(self, frame: Frame, original: Any) -> Packets:
        if original.shape != frame.array.shape:
            return {}
        image = Image(_as_volume(original - frame.array), frame.affine)
        return {"IMAGE removed": self.message(image, frame.acquired_ns, name=self._removed_name)}


def _as_volume(array: Any) -> Any:
    return array.reshape(-1, *array.shape[-2:])
