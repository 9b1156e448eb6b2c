# SPDX-License-Identifier: Apache-2.0
"""A simulated MRI scanner: streams MRD to the appliance and reads what comes back."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.frames import Encoding, Identity
from appliance.mrd import messages as m
from appliance.mrd.connection import Connection, Limits
from appliance.mrd.header import encode_header_xml
from appliance.mrd.meta import parse_meta

_PIECE_BYTES = 1 << 20
_CONFIG = "nearscan"

Lines = tuple[NDArray[Any], NDArray[np.complex64]]  # (n,) ACQUISITION_HEADER; (n, coil, sample)


@dataclass(frozen=True, eq=False)
class ReceivedImage:
    """One image that came back."""

    head: np.void
    meta_xml: bytes
    data: NDArray[Any]  # (channel, z, y, x)
    received_ns: int  # CLOCK_MONOTONIC, last byte

    @property
    def meta(self) -> dict[str, list[str]]:
        """The meta attributes."""
        return parse_meta(self.meta_xml)


@dataclass
class ScannerResult:
    """What a session came to. `sent_ns[n]` is when the last byte of frame n was handed over (CLOCK_MONOTONIC)."""

    images: list[ReceivedImage] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    closed: bool = False  # the appliance answered CLOSE
    sent_ns: list[int] = field(default_factory=list)
    error: str = ""  # why sending or reading ended early


def _skip_line(heads: NDArray[Any], data: NDArray[np.complex64]) -> Lines:
    kept = np.arange(len(heads)) != len(heads) // 4
    return heads[kept], data[kept]


def _repeat_line(heads: NDArray[Any], data: NDArray[np.complex64]) -> Lines:
    order = np.insert(np.arange(len(heads)), len(heads) // 4, len(heads) // 4)
    return heads[order], data[order]


def _nan_line(heads: NDArray[Any], data: NDArray[np.complex64]) -> Lines:
    data = data.copy()
    data[len(data) // 4] = np.nan
    return heads, data


def _zeros(heads: NDArray[Any], data: NDArray[np.complex64]) -> Lines:
    return heads, np.zeros_like(data)


FAULTS: dict[str, Callable[[NDArray[Any], NDArray[np.complex64]], Lines]] = {
    "skip-line": _skip_line,
    "repeat-line": _repeat_line,
    "nan-line": _nan_line,
    "zeros": _zeros,
}


class Scanner:
    """A connection to the appliance with a thread that reads the answers.

    Images that come back go to `on_image`, on that thread; without it the result keeps them.
    """

    def __init__(
        self, host: str, port: int, timeout_s: float, on_image: Callable[[ReceivedImage], None] | None = None
    ) -> None:
        self.result = ScannerResult()
        self._on_image = on_image or self.result.images.append
        self._timeout_s = timeout_s
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = threading.Thread(target=self._read, name="scanner reads", daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> bool:
        """Send whole; say whether the appliance still takes it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            self.result.error = self.result.error or f"scanner: sending failed: {error}"
            return False
        return True

    def hang_up(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):  # the appliance may be gone already, which `wait` tells
            self._socket.shutdown(socket.SHUT_WR)

    def finish(self) -> ScannerResult:
        """Send CLOSE, wait for the appliance's, and give the result."""
        self.send(m.encode_close())
        return self.wait()

    def wait(self) -> ScannerResult:
        """Wait until the appliance hangs up, at most the time-out, and give the result."""
        self._reader.join(self._timeout_s)
        if self._reader.is_alive():
            self.result.error = self.result.error or f"scanner: no CLOSE within {self._timeout_s:g} s"
            self._socket.shutdown(socket.SHUT_RDWR)
            self._reader.join()
        self._socket.close()
        return self.result

    def _read(self) -> None:
        connection = Connection("appliance", Limits(image_bytes=1 << 30))
        try:
            while n_bytes := self._receive(connection.space()):
                received_ns = time.monotonic_ns()
                connection.received(n_bytes)
                for event in connection.events():
                    self._keep(event, received_ns)
        except (OSError, PeerError) as error:
            self.result.error = self.result.error or f"scanner: reading failed: {error}"

    def _receive(self, space: memoryview) -> int:
        while True:
            try:
                return self._socket.recv_into(space)
            except TimeoutError:  # silence is fine while we still send; `wait` ends it
                continue

    def _keep(self, event: m.Event, received_ns: int) -> None:
        match event:
            case m.Image(head, meta_xml, data):
                self._on_image(ReceivedImage(head, meta_xml, data, received_ns))
            case m.Text(text):
                self.result.texts.append(text)
            case m.Close():
                self.result.closed = True
            case _:
                pass


def stream_file(path: Path | str, host: str, port: int, *, timeout_s: float = 60.0) -> ScannerResult:
    """Stream an MRD file (ISMRMRD HDF5, group "dataset") as stored, noise lines and all."""
    xml, messages = _read_file(Path(path))
    scanner = Scanner(host, port, timeout_s)
    scanner.send(m.encode_config_file(_CONFIG) + m.encode_header(xml + b"\0"))  # real clients send the NUL
    for piece in _pieces(messages):
        if not scanner.send(piece):
            break
    scanner.result.sent_ns.append(time.monotonic_ns())
    return scanner.finish()


def _read_file(path: Path) -> tuple[bytes, list[bytes]]:
    import ismrmrd  # slow to import, and only this function reads HDF5

    dataset = ismrmrd.Dataset(str(path), "dataset", mode="r")
    try:
        acquisitions = (dataset.read_acquisition(n) for n in range(dataset.number_of_acquisitions()))
        messages = [struct.pack("<H", m.Id.ACQUISITION) + bytes(each.to_bytes()) for each in acquisitions]
        return bytes(dataset.read_xml_header()), messages
    finally:
        dataset.close()


def _pieces(messages: list[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    n_bytes = 0
    for message in messages:
        held.append(message)
        n_bytes += len(message)
        if n_bytes >= _PIECE_BYTES:
            yield b"".join(held)
            held, n_bytes = [], 0
    yield b"".join(held)


def cine_encoding(
    shape: tuple[int, int, int],
    acceleration: int,
    calibration: Literal["none", "embedded"] = "embedded",
    fov_mm: float = 300.0,
) -> Encoding:
    """Return the encoding of a simulated cine of frames (coil, ky, kx): square field of view, 8 mm thick."""
    n_coils, n_y, n_x = shape
    fov = (fov_mm, fov_mm, 8.0)
    return Encoding(
        encoded_matrix=(n_x, n_y, 1),
        recon_matrix=(n_x, n_y, 1),
        encoded_fov_mm=fov,
        recon_fov_mm=fov,
        n_coils=n_coils,
        acceleration_y=acceleration,
        calibration=calibration if acceleration > 1 else "none",
        tr_ms=3.0,
        te_ms=1.5,
        flip_deg=45.0,
        field_strength_t=1.5,
        frequency_hz=63_870_000,
        sequence_name="cine",
        protocol_name="simulated cine",
        manufacturer="nearscan simulator",
        model_name="cine",
    )


def cine_lines(kspace: NDArray[np.complex64], frame_index: int, acceleration: int, n_calibration_lines: int) -> Lines:
    """Sample a full frame, (coil, ky, kx), as a scanner would: every `acceleration`-th line and the central ones.

    The grid holds the k-space centre. Lines off the grid carry flag 20, calibration lines on it flag 21.
    """
    n_coils, n_y, n_x = kspace.shape
    ky = np.arange(n_y)
    on_grid = (ky - n_y // 2) % acceleration == 0
    central = np.zeros(n_y, bool)
    if acceleration > 1:
        central[n_y // 2 - n_calibration_lines // 2 :][:n_calibration_lines] = True
    lines = np.flatnonzero(on_grid | central)
    heads = np.zeros(len(lines), m.ACQUISITION_HEADER)
    heads["version"] = 1
    heads["scan_counter"] = frame_index * n_y + np.arange(len(lines))
    heads["available_channels"] = n_coils
    heads["center_sample"] = n_x // 2
    heads["sample_time_us"] = 5.0
    heads["read_dir"], heads["phase_dir"], heads["slice_dir"] = np.eye(3)
    heads["idx"]["kspace_encode_step_1"] = lines
    heads["idx"]["repetition"] = frame_index & 0xFFFF
    flags = np.where(central[lines] & on_grid[lines], m.Flag.PARALLEL_CALIBRATION_AND_IMAGING.mask, 0)
    flags += np.where(~on_grid[lines], m.Flag.PARALLEL_CALIBRATION.mask, 0)
    flags[0] += m.Flag.FIRST_IN_SLICE.mask + m.Flag.FIRST_IN_REPETITION.mask
    flags[-1] += m.Flag.LAST_IN_SLICE.mask + m.Flag.LAST_IN_REPETITION.mask
    heads["flags"] = flags
    return heads, np.ascontiguousarray(kspace[:, lines].transpose(1, 0, 2), np.complex64)


def noise_lines(noise: NDArray[np.complex64]) -> bytes:
    """Encode a noise scan, (coil, sample), as one line."""
    heads = np.zeros(1, m.ACQUISITION_HEADER)
    heads["version"] = 1
    heads["flags"] = m.Flag.NOISE.mask
    return m.encode_acquisitions(heads, noise[np.newaxis])


def stream_cine(
    host: str,
    port: int,
    kspace_frames: Iterable[NDArray[np.complex64]],
    *,
    acceleration: int = 2,
    n_calibration_lines: int = 24,
    calibrate: Literal["first", "every"] = "first",
    frame_rate_hz: float = 60.0,
    n_frames: int | None = None,
    noise: NDArray[np.complex64] | None = None,
    identity: Identity | None = None,
    faults: Mapping[int, str] | None = None,
    on_frame: Callable[[int], None] | None = None,
    timeout_s: float = 60.0,
) -> ScannerResult:
    """Stream a 2D cine, one repetition for each full frame (coil, ky, kx) of `kspace_frames`.

    Calibration lines come with the first frame or with every one. Each frame is encoded before its time and sent with
    one call at ``n / frame_rate_hz`` (0: as fast as the appliance takes it). `n_frames` goes into the header, `noise`
    (coil, sample) before the frames. `faults` maps a frame number to a name in `FAULTS`. `on_frame(n)` is called
    when frame n was sent. Never raises for what the appliance does: see `ScannerResult.error`.
    """
    scanner: Scanner | None = None
    begin_s = 0.0
    for n, kspace in enumerate(kspace_frames):
        if scanner is None:
            scanner = Scanner(host, port, timeout_s)
            header = encode_header_xml(cine_encoding(kspace.shape, acceleration), identity, n_frames)
            start = m.encode_config_file(_CONFIG) + m.encode_header(header + b"\0")
            scanner.send(start + (noise_lines(noise) if noise is not None else b""))
            begin_s = time.monotonic()
        lines = cine_lines(kspace, n, acceleration, n_calibration_lines if calibrate == "every" or n == 0 else 0)
        if faults and n in faults:
            lines = FAULTS[faults[n]](*lines)
        message = m.encode_acquisitions(*lines)
        if frame_rate_hz:
            time.sleep(max(0.0, begin_s + n / frame_rate_hz - time.monotonic()))
        if not scanner.send(message):
            return scanner.wait()
        scanner.result.sent_ns.append(time.monotonic_ns())
        if on_frame:
            on_frame(n)
    return scanner.finish() if scanner else ScannerResult(error="scanner: no frames to send")
