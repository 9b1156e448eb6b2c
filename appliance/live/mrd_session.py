# SPDX-License-Identifier: Apache-2.0
"""One scanner session: a socket on one side, ``Scan, Frame…, End`` on the other, and the way back to the scanner."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from appliance.context import Context
from appliance.errors import PeerError
from appliance.frames import End, Frame, Message, Scan
from appliance.live.recorder import Tape
from appliance.mrd import messages as m
from appliance.mrd.assemble import Assembler
from appliance.mrd.connection import Connection, Limits
from appliance.mrd.header import MrdHeader, parse_header
from appliance.mrd.images import ImageReader

_REPLY_WAIT_S = 60.0  # after the last image went out, or after End: longest wait for the reply to be closed
_STOP_WAIT_S = 3.0  # the same once we are stopping: images on their way through the graph still go out
_REFUSE_S = 1.0  # for a refused peer to stop sending
_LINGER_S = 2.0  # time for the scanner to read our last words before the socket goes
_SPARE_SAMPLES = 4  # times the encoded columns: discarded samples, and noise lines longer than the others
_OPEN_FRAMES = 16  # interleaved frames gathered at one time, in units of the largest frame

Status = Literal["complete", "incomplete", "aborted"]


@dataclass(frozen=True)
class SessionOptions:
    """What a site may set."""

    idle_timeout_s: float = 120.0
    send_timeout_s: float = 10.0
    max_frame_bytes: int = 64 << 20
    text_log: bool = False


class Session:
    """Serves one connection in `run`, on the caller's thread. Is the `Reply` of its scan."""

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        scan_id: str,
        options: SessionOptions,
        context: Context,
        emit: Callable[[Message], None],
        tape: Tape | None = None,
    ) -> None:
        self._socket = sock
        self._tape = tape
        self._peer = peer
        self._answer = sock.dup()  # the same connection with a time-out of its own
        self._answer.settimeout(options.send_timeout_s)
        self._scan_id = scan_id
        self._options = options
        self._context = context
        self._emit = emit
        self._connection = Connection(limits=Limits(image_bytes=options.max_frame_bytes))
        self._config = ""
        self._header: MrdHeader | None = None
        self._started_ns = 0
        self._reader: Assembler | ImageReader | None = None
        self._sending = threading.Lock()
        self._sent_s = time.monotonic()
        self._closed = threading.Event()
        self._stopping = False
        self._ended = False
        self._began = False  # the graph has the Scan

    @property
    def skipped(self) -> dict[str, int]:
        """How many lines or images of which kind were not used."""
        return self._reader.skipped if self._reader else {}

    @property
    def n_frames(self) -> int:
        """Imaging frames emitted so far."""
        return self._reader.n_frames if self._reader else 0

    def run(self) -> tuple[Status, str]:
        """Serve the session to its end; never raises what the scanner or the network did wrong."""
        status: Status = "aborted"
        reason = "internal error, see the log"  # stays when an exception of our own passes through
        try:
            try:
                status, reason = self._serve()
            finally:
                if not self._ended:
                    self._emit_end(status, reason)
                if self._tape is not None:
                    self._tape.close()
        finally:
            self._hang_up(status, reason)
        return status, reason

    def _serve(self) -> tuple[Status, str]:
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._receive()
        except (PeerError, OSError) as error:
            return self._end("aborted", "nearscan is stopping" if self._stopping else _lost(error))
        return self._end("complete", "")

    def stop(self) -> None:
        """Make `run` return soon. Called from another thread."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)

    def send(self, data: bytes) -> None:
        """Write whole. Raises PeerError when the scanner is gone or did not take it within the send time-out."""
        with self._sending:
            if self._closed.is_set():
                raise PeerError("mrd: the scanner's connection is closed")
            try:
                self._answer.sendall(data)
            except TimeoutError as error:
                raise PeerError(
                    f"mrd: the scanner did not read {len(data)} bytes within {self._options.send_timeout_s:g} s"
                ) from error
            except OSError as error:
                raise PeerError(f"mrd: the scanner hung up: {error.strerror}") from error
            self._sent_s = time.monotonic()

    def close(self, status: str, reason: str) -> None:
        """Send TEXT (where there is a reason) and CLOSE, once; then nothing more is written."""
        text = m.encode_text(f"nearscan: scan {status}: {reason}") if reason else b""
        with self._sending:
            if not self._closed.is_set():
                with contextlib.suppress(OSError):  # whoever is gone needs no farewell
                    self._answer.sendall(text + m.encode_close())
                    self._answer.shutdown(socket.SHUT_WR)
                self._closed.set()

    def _receive(self) -> None:
        while True:
            deadline_s = time.monotonic() + self._options.idle_timeout_s
            if self._receive_events(deadline_s):
                return

    def _receive_events(self, deadline_s: float) -> bool:
        """Read until something complete has been handled; say whether that was CLOSE."""
        handled = False
        while not handled:
            self._socket.settimeout(max(deadline_s - time.monotonic(), 0.001))
            try:
                n_bytes = self._socket.recv_into(space := self._connection.space())
            except TimeoutError:
                idle_s = self._options.idle_timeout_s
                raise PeerError(f"mrd: no complete message for {idle_s:g} s; send CLOSE (id 4) at the end") from None
            if n_bytes == 0:
                self._connection.end_of_stream()
            received_ns, acquired_ns = time.monotonic_ns(), time.time_ns()
            if self._tape is not None:
                self._tape.write(space[:n_bytes])
            self._connection.received(n_bytes)
            for event in self._connection.events():
                if isinstance(event, m.Close):
                    return True
                handled = True
                for frame in self._handle(event, received_ns, acquired_ns):
                    self._emit(frame)
        return False

    def _handle(self, event: m.Event, received_ns: int, acquired_ns: int) -> Iterator[Frame]:
        match event:
            case m.Acquisitions():
                reader = self._reader or self._begin_raw(event.data.shape[1])
                if not isinstance(reader, Assembler):
                    raise PeerError("mrd: raw lines after images; send one kind in one connection")
                yield from reader.add(event, received_ns, acquired_ns)
            case m.Image():
                images = self._reader or self._begin_images()
                if not isinstance(images, ImageReader):
                    raise PeerError("mrd: images after raw lines; send one kind in one connection")
                yield from images.add(event, received_ns, acquired_ns)
            case m.Header():
                self._header, self._started_ns = parse_header(event.xml), acquired_ns
                n_samples = _SPARE_SAMPLES * self._header.encoding.encoded_matrix[0]
                n_channels = self._header.encoding.n_coils or self._connection.limits.n_channels
                self._connection.limits = replace(self._connection.limits, n_samples=n_samples, n_channels=n_channels)
            case m.ConfigFile(name):
                self._config = name
            case m.ConfigText(text):
                self._config = f"text of {len(text)} characters"
            case _:  # texts and waveforms select nothing
                pass

    def _begin_raw(self, n_coils: int) -> Assembler:
        header = self._expect_header()
        if header.unsupported:
            raise PeerError(header.unsupported)
        encoding = replace(header.encoding, n_coils=n_coils)
        n_x, n_y, _ = encoding.encoded_matrix
        n_bytes = 8 * n_coils * n_x * n_y
        if n_bytes > self._options.max_frame_bytes:
            raise PeerError(
                f"mrd: frames of {n_coils} channels, {n_x}x{n_y} have {n_bytes >> 20} MiB, "
                f"at most {self._options.max_frame_bytes >> 20} are taken; raise max_frame_mb of the mrd source"
            )
        self._reader = Assembler(self._scan_id, header, n_coils, _OPEN_FRAMES * self._options.max_frame_bytes)
        shape = (n_coils, None, n_x)
        self._emit_scan(Scan(self._scan_id, "MR", ("coil", "ky", "kx"), shape, "complex64", 0, encoding=encoding))
        return self._reader

    def _begin_images(self) -> ImageReader:
        encoding = self._expect_header().encoding
        self._reader = ImageReader(self._scan_id)
        self._emit_scan(Scan(self._scan_id, "MR", ("y", "x"), (None, None), "float32", 0, encoding=encoding))
        return self._reader

    def _expect_header(self) -> MrdHeader:
        if self._header is None:
            raise ValueError("mrd session: data before header got through the table of transitions")
        return self._header

    def _emit_scan(self, scan: Scan) -> None:
        header = self._expect_header()
        raw = scan.dtype == "complex64"
        self._context.replies[self._scan_id] = self
        self._emit(
            replace(
                scan,
                started_ns=self._started_ns,
                source=f"mrd {self._peer}",
                n_frames=header.n_frames if raw else None,
                identity=header.identity,
                attributes={"config": self._config, "trajectory": header.trajectory},
            )
        )
        self._began = True
        if self._options.text_log:
            with contextlib.suppress(PeerError):
                self.send(m.encode_text(f"nearscan: scan {self._scan_id} has begun"))

    def _end(self, status: Status, reason: str) -> tuple[Status, str]:
        """Emit what is left and End; give the final status and reason."""
        if self._reader is None:
            return (status, reason) if reason else ("incomplete", "mrd: no data came before CLOSE")
        if isinstance(self._reader, Assembler):
            for frame in self._reader.finish():
                self._emit(frame)
            reasons = [reason, self._reader.faults.reason, self._too_few() if status == "complete" else ""]
        else:
            reasons = [reason, self._reader.faults.reason]
        reason = "; ".join(filter(None, reasons))
        if reason and status == "complete":
            status = "incomplete"
        self._emit_end(status, reason)
        return status, reason

    def _emit_end(self, status: Status, reason: str) -> None:
        self._ended = True
        if self._began:
            self._emit(End(self._scan_id, status, reason, self.n_frames))

    def _too_few(self) -> str:
        expected = self._expect_header().n_frames or 0
        return f"{self.n_frames} of {expected} frames came" if self.n_frames < expected else ""

    def _hang_up(self, status: str, reason: str) -> None:
        """Wait for the sink that answers, where there is one; then see that the scanner gets the rest."""
        if self._reader is not None and self._context.reply_wanted.is_set():
            self._sent_s = time.monotonic()
            while not self._closed.wait(0.1):
                if time.monotonic() - self._sent_s > (_STOP_WAIT_S if self._stopping else _REPLY_WAIT_S):
                    break
        self._context.replies.pop(self._scan_id, None)
        self.close(status, reason)
        self._drain()
        self._answer.close()
        self._socket.close()

    def _drain(self) -> None:
        """Read on for a moment: closing with unread bytes would reset the connection and lose what we said."""
        deadline_s = time.monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            while (left_s := deadline_s - time.monotonic()) > 0:
                self._socket.settimeout(left_s)
                if not self._socket.recv_into(self._connection.space()):
                    return


def _lost(error: PeerError | OSError) -> str:
    return str(error) if isinstance(error, PeerError) else f"mrd: the connection was lost: {error.strerror}"


def refuse(sock: socket.socket, text: str) -> None:
    """Answer a session that is not served, and close it."""
    with sock:
        sock.settimeout(0.2)
        deadline_s = time.monotonic() + _REFUSE_S
        with contextlib.suppress(OSError):
            sock.sendall(m.encode_text(f"nearscan: {text}") + m.encode_close())
            sock.shutdown(socket.SHUT_WR)
            # A close with unread bytes would lose the text; but a peer that keeps sending must not hold up others.
            while sock.recv(1 << 16) and time.monotonic() < deadline_s:
                pass
