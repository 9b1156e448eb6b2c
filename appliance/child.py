# SPDX-License-Identifier: Apache-2.0
"""What every child process runs in: log lines, stop signals, a heartbeat on the live bus, death with its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.bus import Publisher

HEARTBEAT_S = 1.0

_PR_SET_PDEATHSIG = 1  # prctl(2)
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), 127, 0x85, 0x2028, 0x2029)}

log = logging.getLogger(__name__)


class _OneLine(logging.Formatter):
    """One line for each record; what a peer sent cannot begin a line of its own."""

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text.replace("\n", " | ").translate(_CONTROL)


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send all log records to stderr, as ``time level logger: text``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def die_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies, so that no orphan keeps a port or a GPU."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before prctl
        os._exit(1)


class Child:
    """One child process. Its heartbeat is its status, published once a second from the first moment on."""

    def __init__(self, run_dir: Path, process: str) -> None:
        self.process = process
        self.stopping = threading.Event()
        self.alarms: dict[str, str] = {}
        self.state = "starting"
        self._alarming = threading.Lock()
        self._status: Callable[[], dict[str, Any]] = dict
        self._closed = threading.Event()
        self._publisher = Publisher(run_dir, process, "status")
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop_on_signals(self) -> None:
        """SIGTERM and SIGINT set `stopping` and do nothing else. Call it from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stopping.set())

    def alarm(self, key: str, text: str) -> None:
        """Raise an alarm for people, once for each key until its text changes; an empty text clears it."""
        with self._alarming:
            if self.alarms.get(key, "") == text:
                return
            alarms = {**self.alarms, key: text}
            self.alarms = {name: words for name, words in alarms.items() if words}
        log.warning("alarm %s: %s", key, text or "cleared")

    def serve(self, status: Callable[[], dict[str, Any]]) -> None:
        """From now on the process is running, and `status` gives its own fields. A non-empty "stuck" asks the
        daemon to kill it. `status` is called on the heartbeat's thread."""
        self._status = status
        self.state = "running"

    def heartbeat(self) -> dict[str, Any]:
        """Return what is published now."""
        own, alarms = {}, dict(self.alarms)
        try:
            own = self._status()
        except Exception as error:  # the process's main: a status that fails must not stop the images
            log.exception("status failed")
            alarms["status"] = f"the status of this process cannot be read: {type(error).__name__}"
        state = "draining" if self.stopping.is_set() else self.state
        return {
            "process": self.process,
            "state": state,
            "pid": os.getpid(),
            "time_ns": time.time_ns(),
            **own,
            "alarms": {**own.get("alarms", {}), **alarms},
        }

    def _beat(self) -> None:
        failing = ""
        while not self._closed.is_set():
            try:
                self._publisher.publish(self.heartbeat())
            except (TypeError, ValueError) as error:  # a status that is not JSON
                if failing != str(error):
                    log.error("status cannot be published: %s", error)
                failing = str(error)
                self._status = dict
                self.alarm("status", f"the status of this process cannot be read: {error}")
            self._closed.wait(HEARTBEAT_S)

    def close(self) -> None:
        """End the heartbeat."""
        self._closed.set()
        self._thread.join(2 * HEARTBEAT_S)
        self._publisher.close()


def process_name(kind: str, name: str | None) -> str:
    """Name a child on the live bus and in logs: "pipeline-NAME", "receiver", "deliverer", "console"."""
    return f"{kind}-{name}" if name else kind
