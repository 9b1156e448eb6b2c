# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: starts its children, survives their death, reloads, drains, leaves no orphan."""

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from appliance.bus import Subscriber
from appliance.simulate.free_ports import free_ports

FIRST = "site: {{name: t, data_dir: {data}, run_dir: {run}}}\n"
RECEIVER = "listen: {{dicom: {{port: {port}, bind: 127.0.0.1}}}}\n"
CONSOLE = "console: {{port: {console}}}\n"
DELIVERER = "destinations: {{pacs: {{dicom: {{host: 127.0.0.1, port: 9, ae_title: X}}}}}}\n"


def free_port():
    return free_ports(1)[0]


def connect(host, port):
    """Wait until something listens there."""
    for _ in range(300):
        try:
            socket.create_connection((host, port), 5).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError(f"nothing listens on {host}:{port}")


class Daemon:
    def __init__(self, folder, *parts):
        self.run_dir = Path(tempfile.mkdtemp(prefix="ns-"))
        self.values = {"data": folder / "data", "run": self.run_dir, "port": free_port(), "console": free_port()}
        self.file = folder / "site.yaml"
        self.log = folder / "log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(self.run_dir / "notify"))
        self.notifications = queue.SimpleQueue()
        threading.Thread(target=self._read_notifications, daemon=True).start()
        self.write(FIRST, *parts)
        self.process = self.start()
        self.bus = Subscriber(self.run_dir, [("daemon", "status")])

    def write(self, *parts):
        self.file.write_text("".join(parts).format(**self.values))

    def start(self):
        environment = {**os.environ, "NOTIFY_SOCKET": str(self.run_dir / "notify")}
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "appliance", "run", "--config", str(self.file)]
            return subprocess.Popen(command, stderr=log, env=environment)

    def _read_notifications(self):
        with contextlib.suppress(OSError):  # closed at the end
            while text := self.notified.recv(4096).decode():
                self.notifications.put(text)

    def told(self, word):
        """Wait for a message with `word` among what systemd would get."""
        while word not in (text := self.notifications.get(timeout=60)):
            pass
        return text

    def until(self, condition, seconds=60):
        """Return the first status for which `condition(children, status)` holds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            heard = self.bus.receive(1.0)
            if heard and condition(heard[2]["children"], heard[2]):
                return heard[2]
        raise AssertionError(f"not within {seconds} s; log:\n{self.log.read_text()}")

    def stop(self):
        self.process.terminate()
        return self.process.wait(40)


@pytest.fixture
def daemon(tmp_path):
    started = []

    def start(*parts):
        started.append(Daemon(tmp_path, *parts))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        one.notified.shutdown(socket.SHUT_RDWR)
        one.notified.close()
        one.bus.close()
        shutil.rmtree(one.run_dir, ignore_errors=True)


def running(*names):
    return lambda children, _: all(children.get(name, {}).get("state") == "running" for name in names)


def test_children_that_die_or_freeze_come_back_alone(daemon):
    site = daemon(RECEIVER, DELIVERER, CONSOLE)
    assert "WATCHDOG=1" in site.told("READY=1")
    before = site.until(running("receiver", "deliverer", "console"))["children"]
    os.kill(before["receiver"]["pid"], signal.SIGKILL)
    os.kill(before["deliverer"]["pid"], signal.SIGSTOP)
    status = site.until(lambda children, _: children["deliverer"]["restarts"] and children["receiver"]["restarts"])
    after = status["children"]
    assert after["receiver"]["last_end"] == "ended by signal 9"
    assert after["deliverer"]["last_end"] == "killed: no heartbeat for 10 s"
    n_restarts = after["receiver"]["restarts"]
    told = f"ended by signal 9; restarted {n_restarts} times; see its lines in the log"
    assert status["alarms"]["receiver"] == told
    assert (after["console"]["pid"], after["console"]["restarts"]) == (before["console"]["pid"], 0)
    site.until(running("receiver", "deliverer", "console"))
    connect("127.0.0.1", site.values["port"])
    second_is_refused(site)
    assert site.stop() == 0
    assert site.told("STOPPING=1")
    assert not psutil.pid_exists(before["console"]["pid"])


def second_is_refused(site):
    command = [sys.executable, "-m", "appliance", "run", "--config", str(site.file)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert second.stderr.strip().splitlines()[-1] == (
        f"daemon: {str(site.values['data'])!r} is in use by another nearscan (process {site.process.pid}); "
        "stop it first, or set another site.data_dir"
    )


def test_reload_restarts_only_what_changed_and_refuses_a_wrong_file(daemon):
    site = daemon(RECEIVER, DELIVERER)
    first = site.until(running("receiver", "deliverer"))["children"]

    site.write(FIRST, RECEIVER, DELIVERER, "colour: red\n")
    site.process.send_signal(signal.SIGHUP)
    status = site.until(lambda _, status: "reload" in status["alarms"])
    assert "site.yaml:4:1: colour: unknown key 'colour'" in status["alarms"]["reload"]
    assert "the old settings stay in force" in status["alarms"]["reload"]
    assert status["children"]["receiver"]["pid"] == first["receiver"]["pid"]

    site.write(FIRST, RECEIVER.replace("127.0.0.1", "127.0.0.2"), DELIVERER)
    site.process.send_signal(signal.SIGHUP)
    status = site.until(
        lambda children, _: (
            children["receiver"]["pid"] not in (None, first["receiver"]["pid"])
            and children["receiver"]["state"] == "running"
        )
    )
    assert "reload" not in status["alarms"]
    assert status["children"]["receiver"]["restarts"] == 0, "it was asked to"
    assert status["children"]["deliverer"]["pid"] == first["deliverer"]["pid"]
    connect("127.0.0.2", site.values["port"])

    site.write(FIRST, DELIVERER)
    site.process.send_signal(signal.SIGHUP)
    status = site.until(lambda children, _: "receiver" not in children)
    assert status["children"]["deliverer"]["pid"] == first["deliverer"]["pid"]

    no_child_outlives(site, status["children"])


def no_child_outlives(site, children):
    site.process.kill()
    site.process.wait()
    for child in children.values():
        for _ in range(100):
            if not psutil.pid_exists(child["pid"]) or psutil.Process(child["pid"]).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(f"process {child['pid']} is an orphan")
