# SPDX-License-Identifier: Apache-2.0
"""Bytes of one MRD stream to events.

Rule: no sockets here. Lengths are checked against `Limits` before anything is allocated for them. What the peer
does wrong raises `PeerError`, what our caller does wrong `ValueError`; after a `PeerError` the stream is over.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.mrd import messages as m

_LEAST_SPACE = 256 * 1024  # worth one call of recv
_YARDL = int.from_bytes(b"ya", "little")  # MRD v2 streams begin with the bytes "yardl"

_SETTING_UP = {m.Id.CONFIG_FILE, m.Id.CONFIG_TEXT, m.Id.HEADER, m.Id.TEXT, m.Id.CLOSE}
_DATA = {m.Id.ACQUISITION, m.Id.IMAGE, m.Id.WAVEFORM}
_ALLOWED: dict[str, set[m.Id]] = {
    "new": _SETTING_UP,
    "configured": {m.Id.HEADER, m.Id.TEXT, m.Id.CLOSE},
    "streaming": _DATA | {m.Id.TEXT, m.Id.CLOSE},
    "answering": _DATA | {m.Id.TEXT, m.Id.CLOSE},  # what a scanner may hear from us, at any time
    "closed": set(),
}
_NEXT = {m.Id.CONFIG_FILE: "configured", m.Id.CONFIG_TEXT: "configured", m.Id.HEADER: "streaming", m.Id.CLOSE: "closed"}


@dataclass(frozen=True)
class Limits:
    """The most that we take. The session narrows samples and channels to what the header announces."""

    header_bytes: int = 16 << 20  # vendors put whole protocols into it as base64; 1 MiB has been seen
    text_bytes: int = 1 << 20
    image_bytes: int = 64 << 20
    image_meta_bytes: int = 1 << 20
    waveform_bytes: int = 16 << 20
    n_samples: int = 16384
    n_channels: int = 256


class Connection:
    """One stream, from "scanner" to us or from "appliance" to a scanner.

    Either call `receive(data)`, or fill `space()` and say how much with `received(n)`; then use up `events()`.
    """

    def __init__(
        self,
        sender: Literal["scanner", "appliance"] = "scanner",
        limits: Limits | None = None,
        buffer_bytes: int = 4 << 20,
    ) -> None:
        self.limits = limits or Limits()
        self._state = "new" if sender == "scanner" else "answering"
        self._buffer = np.empty(max(buffer_bytes, _LEAST_SPACE), np.uint8).data
        self._start = self._end = 0  # of what is not parsed yet
        self._wanted = 2  # bytes from _start that the next step needs
        self._parsers: dict[m.Id, Callable[[], tuple[m.Event, int] | None]] = {
            m.Id.CONFIG_FILE: self._config_file,
            m.Id.CONFIG_TEXT: lambda: self._text("CONFIG_TEXT", m.ConfigText),
            m.Id.HEADER: self._header,
            m.Id.CLOSE: lambda: (m.Close(), 2),
            m.Id.TEXT: lambda: self._text("TEXT", m.Text),
            m.Id.ACQUISITION: self._acquisitions,
            m.Id.IMAGE: self._image,
            m.Id.WAVEFORM: self._waveform,
        }

    @property
    def state(self) -> str:
        """Which messages may come next: "new", "configured", "streaming", "answering" or "closed"."""
        return self._state

    def space(self) -> memoryview:
        """Return where to put the next bytes. Views given out by `events` are not valid any more."""
        held = self._end - self._start
        if len(self._buffer) - self._start < max(self._wanted, held + _LEAST_SPACE):
            room = max(self._wanted, held) + _LEAST_SPACE
            target = self._buffer if room <= len(self._buffer) else np.empty(room, np.uint8).data
            target[:held] = self._buffer[self._start : self._end]
            self._buffer, self._start, self._end = target, 0, held
        return self._buffer[self._end :]

    def received(self, n_bytes: int) -> None:
        """Say how many bytes were put into `space()`."""
        if not 0 <= n_bytes <= len(self._buffer) - self._end:
            raise ValueError(f"received: {n_bytes} bytes do not fit into {len(self._buffer) - self._end}")
        self._end += n_bytes

    def receive(self, data: bytes) -> Iterator[m.Event]:
        """Take `data` of any length and give the events it completes."""
        view = memoryview(data)
        while view:
            space = self.space()
            n = min(len(space), len(view))
            space[:n] = view[:n]
            self.received(n)
            view = view[n:]
            yield from self.events()

    def events(self) -> Iterator[m.Event]:
        """Give what is complete. Use it up before more bytes are put in."""
        while (found := self._next()) is not None:
            yield found

    def end_of_stream(self) -> None:
        """Say that the peer has hung up. Raises PeerError unless that was after its CLOSE."""
        if self._state == "closed":
            return
        held = self._end - self._start
        inside = f"inside a message, {held} of {self._wanted} bytes came" if held else "without CLOSE"
        raise PeerError(f"mrd: the connection ended {inside}; send CLOSE (id 4) when the scan is over")

    def _next(self) -> m.Event | None:
        if self._end == self._start:
            self._start = self._end = 0
        if not self._have(2):
            return None
        number = int(self._unpack("<H", 0)[0])
        message_id = self._check_id(number)
        found = self._parsers[message_id]()
        if found is None:
            return None
        event, n_bytes = found
        self._start += n_bytes
        self._wanted = 2
        if self._state != "answering" or message_id == m.Id.CLOSE:
            self._state = _NEXT.get(message_id, self._state)
        return event

    def _check_id(self, number: int) -> m.Id:
        if self._state == "closed":
            raise PeerError("mrd: data after CLOSE; open a new connection for the next scan")
        if number == _YARDL:
            raise PeerError("mrd: this is MRD version 2 (yardl); set the scanner to stream MRD version 1 (ISMRMRD)")
        if number not in self._parsers:
            raise PeerError(f"mrd: unknown message id {number}; this port takes MRD version 1 (ISMRMRD) streams only")
        message_id = m.Id(number)
        if message_id not in _ALLOWED[self._state]:
            raise PeerError(_out_of_order(message_id, self._state))
        return message_id

    def _have(self, n_bytes: int) -> bool:
        self._wanted = n_bytes
        return self._end - self._start >= n_bytes

    def _unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(layout, self._buffer, self._start + offset)

    def _bytes(self, offset: int, n_bytes: int) -> bytes:
        return self._buffer[self._start + offset : self._start + offset + n_bytes].tobytes()

    def _array(self, dtype: np.dtype[Any], offset: int, count: int = 1) -> NDArray[Any]:
        return np.frombuffer(self._buffer, dtype, count, self._start + offset)

    def _config_file(self) -> tuple[m.Event, int] | None:
        size = 2 + m.CONFIG_FILE_SIZE
        if not self._have(size):
            return None
        name = self._bytes(2, m.CONFIG_FILE_SIZE).partition(b"\0")[0]
        return m.ConfigFile(name.decode("utf-8", "replace")), size

    def _counted(self, what: str, most: int) -> bytes | None:
        if not self._have(6):
            return None
        n_bytes = int(self._unpack("<I", 2)[0])
        if n_bytes > most:
            raise PeerError(f"mrd: {what} of {n_bytes} bytes announced; at most {most} are taken")
        return self._bytes(6, n_bytes) if self._have(6 + n_bytes) else None

    def _text(self, what: str, event: Callable[[str], m.Event]) -> tuple[m.Event, int] | None:
        body = self._counted(what, self.limits.text_bytes)
        return None if body is None else (event(body.rstrip(b"\0").decode("utf-8", "replace")), 6 + len(body))

    def _header(self) -> tuple[m.Event, int] | None:
        body = self._counted("HEADER", self.limits.header_bytes)
        return None if body is None else (m.Header(body.rstrip(b"\0")), 6 + len(body))

    def _acquisitions(self) -> tuple[m.Event, int] | None:
        if not self._have(2 + m.ACQUISITION_HEADER.itemsize):
            return None
        n_samples, _, n_channels = self._unpack("<3H", 2 + 34)
        (trajectory_dimensions,) = self._unpack("<H", 2 + 176)
        self._check_acquisition(n_samples, n_channels, trajectory_dimensions)
        layout = m.acquisition_message(n_samples, n_channels, trajectory_dimensions)
        if not self._have(layout.itemsize):
            return None
        lines = self._array(layout, 0, (self._end - self._start) // layout.itemsize)
        heads = lines["head"]
        same = lines["id"] == m.Id.ACQUISITION
        same &= heads["number_of_samples"] == n_samples
        same &= heads["active_channels"] == n_channels
        same &= heads["trajectory_dimensions"] == trajectory_dimensions
        n_lines = len(same) if same.all() else int(same.argmin())
        return m.Acquisitions(heads[:n_lines], lines["data"][:n_lines]), n_lines * layout.itemsize

    def _check_acquisition(self, n_samples: int, n_channels: int, trajectory_dimensions: int) -> None:
        most = self.limits
        if not (0 < n_samples <= most.n_samples and 0 < n_channels <= most.n_channels and trajectory_dimensions <= 4):
            raise PeerError(
                f"mrd: acquisition with {n_channels} channels of {n_samples} samples and {trajectory_dimensions} "
                f"trajectory dimensions; at most {most.n_channels} channels of {most.n_samples} samples are taken"
            )

    def _image(self) -> tuple[m.Event, int] | None:
        fixed = 2 + m.IMAGE_HEADER.itemsize + 8
        if not self._have(fixed):
            return None
        head = self._array(m.IMAGE_HEADER, 2)[0].copy()
        (n_meta,) = self._unpack("<Q", fixed - 8)
        dtype = m.DATA_TYPES.get(int(head["data_type"]))
        if dtype is None:
            raise PeerError(f"mrd: image of unknown data type {head['data_type']}; types 1 to 8 are known")
        x, y, z = (int(n) for n in head["matrix_size"])
        shape = (int(head["channels"]), z, y, x)
        n_data = math.prod(shape) * dtype.itemsize
        if n_meta > self.limits.image_meta_bytes or not 0 < n_data <= self.limits.image_bytes:
            raise PeerError(
                f"mrd: image of {shape[0]} channels, {x}x{y}x{z} pixels ({n_data} bytes) and {n_meta} bytes of meta; "
                f"at most {self.limits.image_bytes} and {self.limits.image_meta_bytes} are taken"
            )
        if not self._have(fixed + n_meta + n_data):
            return None
        data = self._array(dtype, fixed + n_meta, math.prod(shape)).reshape(shape).copy()
        return m.Image(head, self._bytes(fixed, n_meta).rstrip(b"\0"), data), fixed + n_meta + n_data

    def _waveform(self) -> tuple[m.Event, int] | None:
        fixed = 2 + m.WAVEFORM_HEADER.itemsize
        if not self._have(fixed):
            return None
        head = self._array(m.WAVEFORM_HEADER, 2)[0].copy()
        shape = (int(head["channels"]), int(head["number_of_samples"]))
        n_data = 4 * math.prod(shape)
        if n_data > self.limits.waveform_bytes:
            raise PeerError(
                f"mrd: waveform of {shape[0]} channels of {shape[1]} samples; "
                f"at most {self.limits.waveform_bytes} bytes are taken"
            )
        if not self._have(fixed + n_data):
            return None
        data = self._array(np.dtype("<u4"), fixed, math.prod(shape)).reshape(shape).copy()
        return m.Waveform(head, data), fixed + n_data


def _out_of_order(message_id: m.Id, state: str) -> str:
    if message_id in _DATA:
        return f"mrd: {message_id.name} before HEADER; send CONFIG, then HEADER, then data"
    if message_id == m.Id.HEADER:
        return "mrd: second HEADER in one connection; send CLOSE and open a new connection for the next scan"
    return (
        f"mrd: {message_id.name} is not allowed here (state {state!r}); send CONFIG, then HEADER, then data, then CLOSE"
    )
