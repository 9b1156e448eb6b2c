# SPDX-License-Identifier: Apache-2.0
"""Supervise the child processes of one site: start, restart, reload, drain; talk to systemd."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from appliance import config, environment
from appliance.bus import Publisher, Subscriber
from appliance.child import HEARTBEAT_S, log_to_stderr, process_name
from appliance.errors import ConfigError
from appliance.notify_systemd import notify
from appliance.settings import Settings
from appliance.supervise import Job, Supervised

log = logging.getLogger(__name__)

PIPELINES_DRAIN_S = 12.0
DRAIN_S = 20.0
_LONGEST_LOG_LINE = 8192
# BLAS starts its threads on import, before a pipeline takes its real-time priority: the pipeline would wait for
# ordinary threads (seen: a calibration of 40 ms took 340 beside a busy browser).
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def jobs(settings: Settings) -> dict[str, Job]:
    """Return what must run, by process name."""
    site, buffer, names = settings.site, settings.buffer, tuple(settings.destinations)
    wanted = [
        Job(process_name("pipeline", name), "pipeline", name, (site, pipeline, settings.models, buffer, names))
        for name, pipeline in settings.pipelines.items()
    ]
    if settings.listen.dicom:
        wanted.append(Job("receiver", "receiver", part=(site, settings.listen, buffer)))
    if settings.destinations or settings.listen.dicom:
        listen = settings.listen
        part = (
            site,
            settings.destinations,
            settings.routes,
            settings.series,
            listen.peers,
            listen.our_ae_title,
            buffer,
        )
        wanted.append(Job("deliverer", "deliverer", part=part))
    if settings.console:
        pipelines = tuple(settings.pipelines)
        wanted.append(Job("console", "console", part=(site, settings.console, buffer, names, pipelines)))
    return {job.process: job for job in wanted}


@contextmanager
def only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process alone. Raises ConfigError when another daemon holds it."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    path = data_dir / environment.LOCK_FILE
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise ConfigError(
                f"daemon: {str(data_dir)!r} is in use by another nearscan (process {pid}); "
                "stop it first, or set another site.data_dir"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def run(file: Path) -> int:
    """Run the site described in `file` until SIGTERM or SIGINT."""
    log_to_stderr()
    raw = config.read(file)
    settings = config.parse(raw, str(file))
    _check_machine(settings)
    with only_one(settings.site.data_dir):
        return Daemon(file, raw, settings).run()


class Daemon:
    """The supervisor. One thread does everything but passing on the children's log lines."""

    def __init__(self, file: Path, raw: bytes, settings: Settings) -> None:
        self._file = file
        self._settings = settings
        self._config_copy = settings.site.accepted_file
        self._publisher = Publisher(settings.site.sockets, "daemon", "status")
        self._children: dict[str, Supervised] = {}
        self._stop = self._reload = self._hurry = False
        self._alarms: dict[str, str] = {}
        self._ready = False
        self._next_report = 0.0
        self._accept(raw, settings)

    def run(self) -> int:
        """Supervise until told to stop; return 0."""
        _allow_stack()
        self._install_signals()
        while not self._stop:
            if self._reload:
                self._reload = False
                self._read_again()
            self._tick()
        self._drain()
        return 0

    def _install_signals(self) -> None:
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_reload)

    def _on_stop(self, number: int, _: Any) -> None:
        self._hurry = self._stop and number == signal.SIGINT  # a second Ctrl-C does not wait
        self._stop = True

    def _on_reload(self, *_: Any) -> None:
        self._reload = True

    def _accept(self, raw: bytes, settings: Settings) -> None:
        """Make `settings` the ones that run: children read the copy, which is always a file that was checked."""
        draft = self._config_copy.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_bytes(raw)
        draft.replace(self._config_copy)
        self._settings = settings
        self._jobs = jobs(settings)
        now = time.monotonic()
        for process, job in self._jobs.items():
            if process not in self._children:
                self._children[process] = Supervised(job, self._spawn, now)
        self._subscriber = Subscriber(settings.site.sockets, [(process, "status") for process in self._jobs])

    def _read_again(self) -> None:
        notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            raw = config.read(self._file)
            settings = config.parse(raw, str(self._file))
            self._check_reloadable(settings)
        except ConfigError as error:
            log.error("reload refused, the old settings stay in force:\n%s", error)
            self._alarms["reload"] = f"{self._file} is wrong, the old settings stay in force: {error}"
        else:
            self._alarms.pop("reload", None)
            self._subscriber.close()
            self._accept(raw, settings)
            log.info("reloaded %s", self._file)
        notify("READY=1")

    def _check_reloadable(self, settings: Settings) -> None:
        for key in ("data_dir", "sockets"):
            if getattr(settings.site, key) != getattr(self._settings.site, key):
                raise ConfigError(
                    f"site.{key.replace('sockets', 'run_dir')}: changed; this needs a restart of the service"
                )
        _check_machine(settings)

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", "appliance", "_child", job.kind, *([job.name] if job.name else [])]
        command += ["--config", str(self._config_copy), "--parent", str(os.getpid())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,  # a terminal's Ctrl-C reaches only the daemon, which drains in order
        )
        assert process.stdout is not None
        threading.Thread(target=_pass_on, args=(process.stdout, job.process), daemon=True).start()
        return process

    def _tick(self) -> None:
        """Hear, act, report; takes a quarter of a second."""
        self._listen(0.25)
        now = time.monotonic()
        for process, child in list(self._children.items()):
            job = self._jobs.get(process)
            if not self._stop and (job is None or job.part != child.job.part) and not _busy(child.status):
                child.leave(now + DRAIN_S)
            child.step(now)
            if child.gone and not self._stop:
                del self._children[process]
                if job is not None:
                    self._children[process] = Supervised(job, self._spawn, now)
        if now >= self._next_report:
            self._next_report = now + HEARTBEAT_S
            self._report(now)

    def _listen(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            heard = self._subscriber.receive(left)
            if heard and heard[0] in self._children:
                self._children[heard[0]].hear(heard[2], time.monotonic())

    def _report(self, now: float) -> None:
        status = self._status(now)
        self._publisher.publish(status)
        running = sum(child.state == "running" for child in self._children.values())
        text = f"STATUS={status['state']}: {running} of {len(self._children)} processes running"
        if not self._ready and all(child.settled for child in self._children.values()):
            self._ready = True
            text += "\nREADY=1"
        if all(child.answers(now) for child in self._children.values()):
            text += "\nWATCHDOG=1"
        notify(text)

    def _status(self, now: float) -> dict[str, Any]:
        alarms = {process: child.alarm(now) for process, child in self._children.items()}
        state = "draining" if self._stop else "running" if self._ready else "starting"
        return {
            "process": "daemon",
            "state": state,
            "pid": os.getpid(),
            "time_ns": time.time_ns(),
            "site": self._settings.site.name,
            "alarms": {**self._alarms, **{process: text for process, text in alarms.items() if text}},
            "children": {process: child.report(now) for process, child in self._children.items()},
        }

    def _drain(self) -> None:
        """Stop the pipelines first, so that their sinks can hand over, then the rest."""
        notify("STOPPING=1")
        log.info("stopping: pipelines first")
        started = time.monotonic()
        pipelines = [child for child in self._children.values() if child.job.kind == "pipeline"]
        self._let_go(pipelines, started + PIPELINES_DRAIN_S)
        self._let_go(list(self._children.values()), started + DRAIN_S)
        self._report(time.monotonic())

    def _let_go(self, children: list[Supervised], deadline: float) -> None:
        for child in children:
            child.leave(deadline)
        while not all(child.gone for child in children):
            if self._hurry:
                for child in children:
                    child.leave(0.0)
            self._tick()


def _busy(status: dict[str, Any]) -> bool:
    """Whether a scanner is connected: settings change between scans."""
    return bool(status.get("source", {}).get("sessions", 0))


def _check_machine(settings: Settings) -> None:
    """Refuse what can never work here. What may pass by itself is told, and the rest of the site runs."""
    fatal = environment.fatal(settings)
    if fatal:
        raise ConfigError("\n".join(fatal))
    for line in environment.passing(settings):
        log.warning("%s", line)


def _allow_stack() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard == resource.RLIM_INFINITY or hard >= environment.STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (environment.STACK_BYTES, hard))


def _pass_on(stream: IO[bytes], process: str) -> None:
    """Copy a child's lines to our stderr with its name in front, until it closes its end."""
    with stream:
        while line := stream.readline(_LONGEST_LOG_LINE):
            text = f"{process}: {line.decode(errors='backslashreplace').rstrip()}\n"
            sys.stderr.write(text)
            sys.stderr.flush()
