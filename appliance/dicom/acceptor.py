# SPDX-License-Identifier: Apache-2.0
"""The DICOM listener: a thread for each association, slots that no peer can take from another.

Rule: the accepting thread does nothing that can wait; a TLS handshake happens in the association's own thread, within
its time. A connection that has not asked for an association yet costs no slot: the oldest such gives way.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from appliance.dicom import negotiation
from appliance.dicom.accepted import Accepted, Limits
from appliance.dicom.services import Services

_CLOSE_S = 5.0
CALLED_UNKNOWN, CALLING_UNKNOWN = 7, 3  # reasons of a rejection by the service user, PS3.8 table 9-21
_LOCAL_LIMIT, _BY_PRESENTATION = 2, 3

log = logging.getLogger(__name__)

Refusal = Callable[[negotiation.Request, str], int | None]  # (request, address) -> reason; None: welcome


@dataclass(frozen=True)
class Slots:
    """How many connections are served at one time."""

    associations: int = 64
    per_address: int = 16
    silent: int = 64  # connected, and no association requested yet


class Acceptor:
    """Listens from the constructor on. `refusal` says whom not to take."""

    def __init__(
        self,
        address: tuple[str, int],
        services: Services,
        *,
        refusal: Refusal = lambda request, address: None,
        slots: Slots | None = None,
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._services, self._refusal, self._tls = services, refusal, tls
        self._slots, self._limits = slots or Slots(), limits or Limits()
        self._lock = threading.Lock()
        self._silent: dict[Accepted | socket.socket, None] = {}  # oldest first
        self._open: dict[Accepted, None] = {}
        self._threads: set[threading.Thread] = set()
        self._counts: Counter[str] = Counter()
        self._closing = False
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._listener = socket.create_server(address, family=family, backlog=512)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0)) from error  # without the address: callers add it
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._accept_all, name="dicom accept", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, int]:
        """Plain values."""
        with self._lock:
            return {"associations": len(self._open), "silent": len(self._silent), **self._counts}

    def close(self) -> None:
        """Stop listening and end every association; what was not acknowledged is not kept."""
        self._closing = True
        _hang_up(self._listener)  # which wakes the accepting thread
        self._thread.join(_CLOSE_S)
        self._listener.close()
        with self._lock:
            running, threads = [*self._silent, *self._open], list(self._threads)
        for one in running:
            _hang_up(one)
        end = time.monotonic() + _CLOSE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _accept_all(self) -> None:
        while not self._closing:
            try:
                sock, address = self._listener.accept()
            except OSError:  # a peer that was gone already, or no file descriptor left for now
                time.sleep(0.0 if self._closing else 0.01)
                continue
            self._begin(sock, str(address[0]))

    def _begin(self, sock: socket.socket, address: str) -> None:
        with self._lock:
            self._counts["connections"] += 1
            self._silent[sock] = None
            oldest = next(iter(self._silent)) if len(self._silent) > self._slots.silent else None
            if oldest is not None:
                del self._silent[oldest]
                self._counts["evicted"] += 1
        if oldest is not None:
            _hang_up(oldest)
        thread = threading.Thread(target=self._serve, args=(sock, address), name="dicom association", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread left: this one goes, and those that run must not suffer
            self._count("refused_no_thread")
            sock.close()
            with self._lock:
                self._silent.pop(sock, None)

    def _serve(self, sock: socket.socket, address: str) -> None:
        accepted: Accepted | None = None
        with self._lock:
            self._threads.add(threading.current_thread())
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                plain, sock = sock, self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                self._replace(plain, sock)
                sock.settimeout(self._limits.artim_s)
                sock.do_handshake()  # type: ignore[attr-defined]
            accepted = Accepted(sock, address, self._services, self._decide, self._limits)
            self._replace(sock, accepted)
            accepted.run()
        except OSError as error:  # of the handshake, or it gave way meanwhile
            self._count("not_begun")
            log.warning("association from %s not begun: %s", address, type(error).__name__)
        finally:
            sock.close()
            with self._lock:
                self._silent.pop(sock, None)
                self._threads.discard(threading.current_thread())
                if accepted is not None:
                    self._silent.pop(accepted, None)
                    self._open.pop(accepted, None)

    def _replace(self, before: socket.socket, after: Accepted | socket.socket) -> None:
        """Have the newer object of one connection be the one to hang up. Raises OSError when it gave way."""
        with self._lock:
            if before not in self._silent:
                raise ConnectionAbortedError
            del self._silent[before]
            self._silent[after] = None

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1

    def _decide(self, accepted: Accepted, request: negotiation.Request) -> bytes | None:
        """Give a slot, or the A-ASSOCIATE-RJ that says why not."""
        reason = self._refusal(request, accepted.address)
        if reason is not None:
            self._count("rejected_unknown")
            return negotiation.reject(reason)
        with self._lock:
            same = sum(one.address == accepted.address for one in self._open)
            if len(self._open) >= self._slots.associations or same >= self._slots.per_address:
                self._counts["rejected_full"] += 1
                return negotiation.reject(_LOCAL_LIMIT, source=_BY_PRESENTATION, transient=True)
            self._silent.pop(accepted, None)
            self._open[accepted] = None
            self._counts["accepted"] += 1
        return None


def _hang_up(one: Accepted | socket.socket) -> None:
    with contextlib.suppress(OSError):
        if isinstance(one, Accepted):
            one.hang_up()
        else:
            one.shutdown(socket.SHUT_RDWR)
