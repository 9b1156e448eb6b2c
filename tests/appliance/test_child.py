# SPDX-License-Identifier: Apache-2.0
"""The harness of child processes: heartbeat, alarms, log lines, signals."""

import logging
import os
import subprocess
import sys

import pytest

from appliance import child as harness
from appliance.bus import Subscriber
from appliance.child import Child


@pytest.fixture
def child(tmp_path):
    child = Child(tmp_path, "pipeline-x")
    yield child
    child.close()


def test_it_beats_from_the_first_moment_and_tells_its_state(child, tmp_path):
    subscriber = Subscriber(tmp_path, [("pipeline-x", "status")])
    name, topic, status, _ = subscriber.receive(10)
    subscriber.close()
    assert (name, topic, status["state"], status["pid"]) == ("pipeline-x", "status", "starting", os.getpid())
    child.serve(lambda: {"frames": {"in": 7}})
    assert child.heartbeat()["state"] == "running"
    assert child.heartbeat()["frames"] == {"in": 7}
    child.stopping.set()
    assert child.heartbeat()["state"] == "draining"


def test_alarms_are_raised_once_and_cleared_by_an_empty_text(child, caplog):
    for text in ("slow", "slow", "slower", ""):
        child.alarm("denoise", text)
    assert [record.getMessage() for record in caplog.records] == [
        "alarm denoise: slow", "alarm denoise: slower", "alarm denoise: cleared",
    ]  # fmt: skip
    assert child.heartbeat()["alarms"] == {}


def test_a_status_that_fails_is_told_and_does_not_end_the_heartbeat(child):
    def broken():
        raise KeyError("n_frames")

    child.serve(broken)
    heartbeat = child.heartbeat()
    assert heartbeat["alarms"] == {"status": "the status of this process cannot be read: KeyError"}
    assert heartbeat["state"] == "running"


def test_a_status_that_is_not_json_is_told(child, tmp_path):
    child.serve(lambda: {"array": object()})
    subscriber = Subscriber(tmp_path, [("pipeline-x", "status")])
    heard = {}
    for _ in range(10):
        message = subscriber.receive(3)
        heard = message[2]["alarms"] if message else {}
        if heard:
            break
    subscriber.close()
    assert heard == {
        "status": "the status of this process cannot be read: Object of type object is not JSON serializable"
    }


def test_log_lines_cannot_be_forged():
    record = logging.LogRecord("mrd", logging.INFO, "", 0, "peer said %s", ("a\nERROR x\r\x1b[2J\x85b",), None)
    line = harness._OneLine("%(levelname)s %(name)s: %(message)s").format(record)
    assert line == "INFO mrd: peer said a | ERROR x\\x0d\\x1b[2J\\x85b"


def test_sigterm_sets_stopping_and_raises_nothing(tmp_path):
    script = f"""
import os, signal, pathlib
from appliance.child import Child
child = Child(pathlib.Path({str(tmp_path)!r}), "x")
child.stop_on_signals()
os.kill(os.getpid(), signal.SIGTERM)
print(child.stopping.wait(10), child.heartbeat()["state"])
child.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True draining\n", 0)


def test_a_child_whose_parent_is_already_gone_ends():
    script = "from appliance.child import die_with; die_with(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 1)


def test_a_child_with_a_wrong_file_says_why_and_fails(tmp_path):
    (tmp_path / "site.yaml").write_text("site: {}\n")
    command = [sys.executable, "-m", "appliance", "_child", "receiver", "--config", str(tmp_path / "site.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "site.yaml:1:1: site.name: missing; add it: Name of this box" in done.stderr
    assert "Traceback" not in done.stderr
