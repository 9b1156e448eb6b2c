# SPDX-License-Identifier: Apache-2.0
"""The demo accounts for every image, and says so when one is missing."""

import copy
import itertools
import json
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from appliance.demo import mri


def command(*arguments):
    return [sys.executable, "-m", "appliance", "demo", *arguments]


def test_the_demo_loses_nothing_and_finds_just_what_was_planted(tmp_path):
    out = tmp_path / "out.json"
    done = subprocess.run(command("--seconds", "8", "--json", str(out)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    frames, results = result["frames"], result["results"]
    assert frames["sent"] == frames["in"] == frames["scanner_out"] == 120
    assert results["lost"] == 0
    assert results["delivered"] == results["produced"] == results["at_pacs"] > 0
    assert result["anomalies"]["found"] == len(result["anomalies"]["planted"]) == 3
    assert result["anomalies"]["false"] == []
    assert "-- the PACS goes away --" in done.stdout
    assert "coil 5 gives no data" in done.stdout
    assert "every image is accounted for" in done.stdout
    assert re.search(r"sign in {7}as demo with password [\w-]{16} for more than the live image\n", done.stdout)
    assert mri.is_good(result)
    for part, name, wrong in (
        ("frames", "in", 119),
        ("frames", "scanner_out", 119),
        ("results", "lost", 1),
        ("results", "delivered", 1),
        ("anomalies", "missed", [{}]),
        ("anomalies", "false", [{}]),
    ):
        worse = copy.deepcopy(result)
        worse[part][name] = wrong
        assert not mri.is_good(worse)


@pytest.mark.parametrize(
    ("scene", "number", "said", "n_processes"),
    [
        ("mri", signal.SIGINT, "frames sent", 5),  # daemon, pipeline, deliverer, console, PACS
        ("ultrasound", signal.SIGTERM, "at their place", 3),
    ],
)
def test_a_signal_leaves_no_process_behind(scene, number, said, n_processes):
    running = subprocess.Popen(command(scene, "--seconds", "60"), stdout=subprocess.PIPE, text=True)
    for line in running.stdout:
        if said in line:
            break
    family = psutil.Process(running.pid).children(recursive=True)
    assert len(family) >= n_processes
    running.send_signal(number)
    assert running.wait(60) == 130
    running.stdout.close()
    deadline = time.monotonic() + 10
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family):
        assert time.monotonic() < deadline, family
        time.sleep(0.1)


@pytest.mark.parametrize("n_frames", [75, 450, 9000])
def test_faults_are_planted_within_the_scan_and_apart_from_each_other(n_frames):
    planted = mri.plant(n_frames)
    assert all(10 <= fault.first <= fault.last < n_frames for fault in planted)
    assert all(before.last + 2 < after.first for before, after in itertools.pairwise(planted))
