# SPDX-License-Identifier: Apache-2.0
"""Starts, measures from outside and stops the servers and senders of benchmarks/dicom.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from dicom_peers import AE_TITLE

from appliance.simulate.free_ports import free_ports

PEERS = [sys.executable, str(Path(__file__).with_name("dicom_peers.py"))]
LONGEST_PDU = "131072"  # the most that DCMTK and Orthanc take; their default is 16384


@dataclass(frozen=True)
class Server:
    """A running server, measured with all its children, dead ones too."""

    pid: int
    port: int

    def _tree(self) -> list[psutil.Process]:
        process = psutil.Process(self.pid)
        return [process, *process.children(recursive=True)]

    def cpu_s(self) -> float:
        return sum(sum(process.cpu_times()[:4]) for process in self._tree())

    def reset_peak(self) -> None:
        for process in self._tree():
            Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def mib(self, what: str = "VmHWM") -> float:
        lines: list[str] = []
        for process in self._tree():
            with suppress(OSError):  # a child that storescp forked has just ended
                lines += Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def free_port() -> int:
    return free_ports(1)[0]


def _orthanc(folder: Path, port: int) -> list[str]:
    settings = {
        "Name": "bench",
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "Plugins": [],
        "DicomAet": AE_TITLE,
        "DicomPort": port,
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "MaximumPduLength": int(LONGEST_PDU),
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    return ["/usr/sbin/Orthanc", str(folder / "orthanc.json")]


def command(kind: str, folder: Path, port: int) -> list[str]:
    if kind == "orthanc":
        return _orthanc(folder, port)
    storescp = ["storescp", "--fork", "-aet", AE_TITLE, "-od", str(folder), str(port)]
    if kind == "storescp":
        return [*storescp, "+B"]
    if kind == "storescp_128k":
        return [*storescp, "+B", "-pdu", LONGEST_PDU]
    if kind == "ignore":  # pynetdicom naps once for each PDU that it sends: large ones are its best
        return [*storescp, "--ignore", "-pdu", LONGEST_PDU]
    return [*PEERS, f"serve_{kind}", str(port), str(folder)]


@contextmanager
def serving(kind: str, under: Path, tcp_nodelay: str = "1") -> Iterator[tuple[Server, Path]]:
    """Run a server with an empty folder of its own; both are gone afterwards."""
    os.sync()  # what the one before left to be written is not to be written in our time
    with tempfile.TemporaryDirectory(dir=under) as name:
        folder, port = Path(name), free_port()
        with (folder / "log").open("wb") as log:
            environment = {**os.environ, "TCP_NODELAY": tcp_nodelay}
            process = subprocess.Popen(
                command(kind, folder, port), env=environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(process, port, folder / "log")
            yield Server(process.pid, port), folder
        finally:
            end(process)


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(f"{process.args[0]} does not listen on {port}: {log.read_text()[-2000:]}")


def end(process: subprocess.Popen[Any]) -> None:
    """Stop a process that leads its session, and what it forked."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)


@contextmanager
def role(*arguments: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a sender of dicom_peers.py; it has a while to release its association."""
    words = [*PEERS, *map(str, arguments)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=5)
    finally:
        end(process)


def ask(sender: subprocess.Popen[str], words: str) -> str:
    """Write a line to a sender's input and give the line that it answers."""
    sender.stdin.write(words)
    sender.stdin.flush()
    if not (line := sender.stdout.readline()):
        raise RuntimeError(f"a sender failed: {sender.args[2:]}; its words are above")
    return line
