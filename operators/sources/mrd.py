# SPDX-License-Identifier: Apache-2.0
"""MRD (ISMRMRD 1.x) from a scanner over TCP: raw 2D Cartesian lines, or finished images.

In:  MRD stream: config, header, acquisitions or images, close
Out: (coil, ky, kx) complex64, host; noise (coil, sample); or images (y, x) float32, host

Reference: MRD streaming protocol, https://ismrmrd.readthedocs.io. One thread for each session; while `emit` blocks the
socket is not read, so the scanner waits. The configuration named by the scanner is recorded and selects nothing.
`acquired_ns` is the time of receipt: MRD's own time stamp has no defined unit or origin.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from typing import Any

from pydantic import Field

from appliance.context import Context
from appliance.errors import ConfigError
from appliance.live.mrd_session import Session, SessionOptions, refuse
from appliance.live.recorder import Recorded, Recorder
from operators import Emit, OperatorSettings

_JOIN_S = 6.0  # more than a stopped session waits for its reply and its scanner


class Settings(OperatorSettings):
    port: int = Field(9002, ge=0, le=65535, description="TCP port that the scanner connects to; 0: any free one.")
    bind: str = Field("0.0.0.0", description="Address to listen on.")
    idle_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="A session without a complete message for so long is ended, in seconds."
    )
    send_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Longest time the scanner may take to read one answer, in seconds."
    )
    max_sessions: int = Field(4, ge=1, le=64, description="Scanner sessions served at one time; more are refused.")
    max_frame_mb: int = Field(64, ge=1, le=1024, description="Largest frame or image taken, in MiB.")
    text_log: bool = Field(False, description="Tell the scanner by TEXT when a scan begins, not only what went wrong.")
    record: Recorded = None


class MrdSource:
    """TCP server; see `operators.Source`."""

    def __init__(self, settings: Settings, context: Context) -> None:
        self._settings = settings
        self._context = context
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._sessions: dict[threading.Thread, Session] = {}
        self._counts = {"sessions_served": 0, "sessions_refused": 0, "scans_not_complete": 0, "frames": 0}
        self._skipped: dict[str, int] = {}
        self._port = 0
        self._last_reason = ""
        self._recorder = Recorder(settings.record, "mrd", context)

    def run(self, emit: Emit) -> None:
        """Accept sessions until stopped."""
        with self._listen() as server:
            server.settimeout(0.2)  # how soon a stop is noticed; a connection wakes it at once
            self._port = server.getsockname()[1]
            while not self._stopping.is_set():
                try:
                    sock, address = server.accept()
                except TimeoutError:
                    continue
                except OSError:  # a peer that was gone before we took it, or no file descriptor left for now
                    self._stopping.wait(0.2)
                    continue
                self._serve(sock, f"{address[0]}:{address[1]}", emit)
            self._port = 0
        with self._lock:
            running = dict(self._sessions)
        for session in running.values():
            session.stop()
        for thread in running:
            thread.join(_JOIN_S)
        self._recorder.close()

    def stop(self) -> None:
        """Stop accepting and end the running sessions."""
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """Counts; `port` is 0 while not listening."""
        with self._lock:
            running = list(self._sessions.values())
            return {
                "port": self._port,
                "sessions": len(running),
                **self._counts,
                "frames": self._counts["frames"] + sum(session.n_frames for session in running),
                "skipped": dict(self._skipped),
                "last_reason": self._last_reason,
                **self._recorder.status(),
            }

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._settings.bind else socket.AF_INET
        address = (self._settings.bind, self._settings.port)
        try:
            return socket.create_server(address, family=family)
        except OSError as error:
            raise ConfigError(
                f"mrd source: cannot listen on {address[0]}:{address[1]}: {error.strerror}; choose another port or bind"
            ) from error

    def _serve(self, sock: socket.socket, peer: str, emit: Emit) -> None:
        with self._lock:
            full = len(self._sessions) >= self._settings.max_sessions
            self._counts["sessions_refused"] += full
        if full:
            return refuse(sock, f"{self._settings.max_sessions} sessions are open already; try again later")
        scan_id = f"{self._context.pipeline.replace('_', '-')}-{time.time_ns() // 10**6}-{secrets.token_hex(3)}"
        own = self._settings
        options = SessionOptions(own.idle_timeout_s, own.send_timeout_s, own.max_frame_mb << 20, own.text_log)
        try:
            session = Session(sock, peer, scan_id, options, self._context, emit, self._recorder.begin(peer))
        except OSError:  # no file descriptor left: the sessions that run must not suffer
            with self._lock:
                self._counts["sessions_refused"] += 1
            return sock.close()
        thread = threading.Thread(target=self._run_session, args=(session,), name=f"mrd {scan_id}", daemon=True)
        with self._lock:
            self._sessions[thread] = session
        thread.start()

    def _run_session(self, session: Session) -> None:
        status, reason = "aborted", ""
        try:
            status, reason = session.run()
        finally:
            with self._lock:
                self._sessions.pop(threading.current_thread())
                self._counts["sessions_served"] += 1
                self._counts["frames"] += session.n_frames
                self._counts["scans_not_complete"] += status != "complete"
                self._last_reason = reason or self._last_reason
                for kind, n in session.skipped.items():
                    self._skipped[kind] = self._skipped.get(kind, 0) + n


def make(settings: Settings, context: Context) -> MrdSource:
    """Make the source; it listens from `run` on."""
    return MrdSource(settings, context)
