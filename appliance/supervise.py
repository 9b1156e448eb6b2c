# SPDX-License-Identifier: Apache-2.0
"""The life of one child process: started, heard, restarted with back-off for ever, killed when it hangs.

Rule: the clock is a parameter (monotonic seconds) and processes come from `spawn`: the policy is tested without
either.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger(__name__)

FIRST_HEARTBEAT_S = 60.0  # imports and models come before it on a slow disk
SILENCE_S = 10.0
BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 30.0
HEALTHY_AFTER_S = 60.0
UNKILLABLE_AFTER_S = 30.0  # a process that SIGKILL does not end hangs in a driver


class Process(Protocol):
    """What is needed of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@dataclass(frozen=True)
class Job:
    """One child that must run. `part` is all of the settings that it reads: another part, another process."""

    process: str
    kind: str
    name: str | None = None
    part: Any = None


class Supervised:
    """One job and the process that does it now, if any. Call `step` a few times a second."""

    def __init__(self, job: Job, spawn: Callable[[Job], Process], now: float) -> None:
        self.job = job
        self.n_restarts = 0
        self.last_end = ""
        self.status: dict[str, Any] = {}
        self._spawn = spawn
        self._process: Process | None = None
        self._failures = 0
        self._start_at = now
        self._started = self._heard = now
        self._answering = False
        self._killed_at: float | None = None
        self._why_killed = ""
        self._leave_by: float | None = None

    @property
    def gone(self) -> bool:
        """Whether it was told to leave and has left."""
        return self._leave_by is not None and self._process is None

    @property
    def settled(self) -> bool:
        """Whether it has answered, or failed to, at least once."""
        return self._answering or bool(self.last_end)

    @property
    def state(self) -> str:
        """One word for people."""
        if self._process is None:
            return "stopped" if self._leave_by is not None else "waiting"
        if self._killed_at is not None:
            return "killed"
        if self._leave_by is not None:
            return "draining"
        return "running" if self._answering else "starting"

    def step(self, now: float) -> None:
        """Do what is due now."""
        if self._process is None:
            if self._leave_by is None and now >= self._start_at:
                self._start(now)
            return
        code = self._process.poll()
        if code is not None:
            self._ended(code, now)
        elif self._leave_by is not None and now >= self._leave_by:
            self._kill("did not stop in time", now)
        elif now - self._heard > (SILENCE_S if self._answering else FIRST_HEARTBEAT_S):
            self._kill(f"no heartbeat for {now - self._heard:.0f} s", now)

    def hear(self, status: dict[str, Any], now: float) -> None:
        """Take a heartbeat; one of an earlier process of the same name does not count."""
        if self._process is None or status.get("pid") != self._process.pid:
            return
        self._heard, self._answering, self.status = now, True, status
        if status.get("stuck"):
            self._kill(f"stuck: {status['stuck']}", now)

    def leave(self, deadline: float) -> None:
        """Ask it to drain and stop for good, and kill it at the deadline."""
        if self._leave_by is None and self._process is not None:
            self._process.terminate()
        self._leave_by = deadline if self._leave_by is None else min(deadline, self._leave_by)

    def alarm(self, now: float) -> str:
        """What people should know about it, or an empty text."""
        if not self.last_end or self._leave_by is not None:
            return ""
        if self._process is not None and self._answering and now - self._started >= HEALTHY_AFTER_S:
            return ""
        return f"{self.last_end}; restarted {self.n_restarts} times; see its lines in the log"

    def answers(self, now: float) -> bool:
        """Whether it answers, or is being restarted as it should; only what SIGKILL cannot end does neither."""
        return self._killed_at is None or now - self._killed_at < UNKILLABLE_AFTER_S

    def report(self, now: float) -> dict[str, Any]:
        """Plain values for the daemon's status."""
        running = self._process is not None
        return {
            "state": self.state,
            "pid": self._process.pid if self._process else None,
            "uptime_s": round(now - self._started, 1) if running else 0.0,
            "restarts": self.n_restarts,
            "last_end": self.last_end,
            "next_start_s": 0.0 if running else round(max(0.0, self._start_at - now), 1),
        }

    def _start(self, now: float) -> None:
        if self.last_end:
            self.n_restarts += 1
        self._started = self._heard = now
        self._answering, self._killed_at, self._why_killed = False, None, ""
        try:
            self._process = self._spawn(self.job)
        except OSError as error:  # no memory, no file descriptor: as transient as a crash
            self._failed(f"could not be started: {error.strerror}", now)

    def _ended(self, code: int, now: float) -> None:
        self._process = None
        if self._leave_by is not None:
            log.info("%s has stopped", self.job.process)
            return
        ending = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if now - self._started >= HEALTHY_AFTER_S:
            self._failures = 0
        self._failed(self._why_killed or ending, now)

    def _failed(self, why: str, now: float) -> None:
        wait_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._start_at = now + wait_s
        self.last_end, self.status = why, {}
        log.error("%s: %s; starting it again in %.0f s", self.job.process, why, wait_s)

    def _kill(self, why: str, now: float) -> None:
        if self._killed_at is None and self._process is not None:
            self._killed_at, self._why_killed = now, f"killed: {why}"
            log.error("%s: %s; killing it", self.job.process, why)
            self._process.kill()
