# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several parts share: a real Orthanc as PACS, and DCMTK's servers."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from appliance.inference import parity
from appliance.simulate.free_ports import free_ports


def _free_port():
    return free_ports(1)[0]


@pytest.fixture(autouse=True)
def _no_model_is_too_slow(monkeypatch):
    """Timing never decides a test: to the gate of the models every run takes no time."""
    monkeypatch.setattr(parity, "now_ns", lambda: 0)


@pytest.fixture
def free_port():
    """A TCP port of this machine that nobody listens on."""
    return _free_port()


class Orthanc:
    """Debian's Orthanc with its own folder and ports. May be stopped and started again; it keeps what it stored."""

    ae_title = "ORTHANC"

    def __init__(self, folder: Path) -> None:
        self.port, self.http_port = _free_port(), _free_port()
        self.our_port = _free_port()  # where it looks for us, to report on storage commitment
        self._folder, self._process = folder, None
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(path) for path in Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so")],
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {
                "nearscan": {
                    "AET": "NEARSCAN",
                    "Host": "127.0.0.1",
                    "Port": self.our_port,
                    "AllowStorageCommitment": True,
                }
            },
            "DicomCheckCalledAet": True,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))

    def start(self):
        log = (self._folder / "orthanc.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                ["/usr/sbin/Orthanc", str(self._folder / "orthanc.json")], stdout=log, stderr=log
            )
        for _ in range(300):
            try:
                self.get("/system")
                return
            except OSError:
                assert self._process.poll() is None, (self._folder / "orthanc.log").read_text()
                time.sleep(0.1)
        raise AssertionError("Orthanc did not start within 30 s")

    def stop(self):
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def get_bytes(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=10) as answer:
            return answer.read()

    def get(self, path):
        return json.loads(self.get_bytes(path))

    def ask(self, method, path, body=None):
        """Any other request; gives the answer's bytes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def files(self):
        """Every stored instance as Part 10 bytes, in the order of Orthanc's ids."""
        return [self.get_bytes(f"/instances/{name}/file") for name in self.get("/instances")]


@pytest.fixture
def orthanc(tmp_path_factory):
    """A running Orthanc: `.port`, `.ae_title`, `.files()`, `.get(path)`, `.stop()`, `.start()`."""
    if shutil.which("Orthanc", path="/usr/sbin:/usr/bin") is None:
        pytest.fail("Orthanc is not installed: apt install orthanc")
    peer = Orthanc(tmp_path_factory.mktemp("orthanc"))
    peer.start()
    yield peer
    peer.stop()


@pytest.fixture
def start_dcmtk():
    """Start a server of DCMTK by its command; the call returns when it listens on `port`, and it ends with the test."""
    processes = []

    def start(port, *command):
        environment = {**os.environ, "TCP_NODELAY": "1"}  # with Nagle's algorithm it waits 40 ms each time
        process = subprocess.Popen([str(word) for word in command], env=environment)
        processes.append(process)
        for _ in range(1000):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                assert process.poll() is None, f"{command[0]} ended"
                time.sleep(0.01)
        raise AssertionError(f"{command[0]} does not listen after 10 s")

    yield start
    for process in processes:
        process.terminate()
        process.wait(10)
