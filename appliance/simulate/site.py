# SPDX-License-Identifier: Apache-2.0
"""A site of its own: the whole appliance, started from a YAML text in a folder, for demo, benchmarks and tests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from appliance import config
from appliance.buffer import Buffer
from appliance.bus import Subscriber
from appliance.errors import NearscanError
from appliance.simulate.free_ports import free_ports

START_S = 60.0
STOP_S = 40.0


class Site:
    """One running appliance. In its YAML `$data_dir`, `$run_dir` and `$NAME` for each of `ports` are filled in.

    `status` holds the newest status of each process, by name, as published on the live bus.
    """

    def __init__(self, folder: Path, yaml: str, ports: Sequence[str] = ()) -> None:
        self.folder = folder
        self.status: dict[str, dict[str, Any]] = {}
        self._run_dir = Path(tempfile.mkdtemp(prefix="nearscan-"))  # a socket's path has 107 characters at most
        self.data_dir = folder / "data"
        self.file = folder / "site.yaml"
        self.ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        self.file.write_text(Template(yaml).substitute(self.ports, data_dir=self.data_dir, run_dir=self._run_dir))
        self.settings = config.load(self.file)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._watch_status, name="watch", daemon=True)

    @property
    def names(self) -> list[str]:
        """The processes that this site's YAML asks for."""
        settings = self.settings
        optional = {
            "receiver": settings.listen.dicom,
            "deliverer": settings.destinations or settings.listen.dicom,
            "console": settings.console,
        }
        return [f"pipeline-{name}" for name in settings.pipelines] + [name for name, on in optional.items() if on]

    def command(self, name: str, *arguments: str) -> None:
        """Start `nearscan ARGUMENTS` as process `name`, its log in the folder."""
        with self.log_file(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "appliance", *arguments], stdout=log, stderr=log, start_new_session=True
            )

    def log_file(self, name: str = "appliance") -> Path:
        """Where the log of process `name` goes."""
        return self.folder / f"{name}.log"

    def start(self) -> None:
        """Start the appliance and wait until all its processes run. Raises NearscanError with the end of its log."""
        if not self._watch.is_alive():
            self._watch.start()
        self.status.clear()
        self.command("appliance", "run", "--config", str(self.file))
        deadline = time.monotonic() + START_S
        while not all(self.status.get(name, {}).get("state") == "running" for name in self.names):
            if self.processes["appliance"].poll() is not None or time.monotonic() > deadline:
                log = self.log_file().read_text(errors="replace")[-3000:]
                raise NearscanError(f"the appliance did not start; its log ends:\n{log}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop every process that was started, the appliance first, and forget the sockets."""
        for name in sorted(self.processes, key=lambda name: name != "appliance"):
            self.stop_process(name)
        self._over.set()
        if self._watch.is_alive():
            self._watch.join(2)
        shutil.rmtree(self._run_dir, ignore_errors=True)

    def stop_process(self, name: str, number: int = signal.SIGTERM) -> None:
        """Signal one process and wait for its end; one that does not end in time is killed."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _watch_status(self) -> None:
        subscriber = Subscriber(self._run_dir, [(name, "status") for name in (*self.names, "daemon")])
        while not self._over.is_set():
            message = subscriber.receive(0.5)
            if message:
                self.status[message[0]] = message[2]
        subscriber.close()

    def counts(self) -> dict[str, Any]:
        """What is produced, owed and delivered so far."""
        buffer = Buffer(self.data_dir)
        try:
            return buffer.counts()
        finally:
            buffer.close()
