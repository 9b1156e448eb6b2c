# SPDX-License-Identifier: Apache-2.0
"""A kill, EIO or ENOSPC at every system call that changes the disk: nothing lost, nothing false said."""

import json
import pickle
import re
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from sweep_scenarios import content, prepare

from appliance.buffer import Buffer
from appliance.buffer.segments import Place
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Destination
from appliance.dicom.spool import pack
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

pytestmark = pytest.mark.peer  # strace
HERE = Path(__file__).parent


def sweep(scenario, root, argument="", faults=("KILL", "EIO", "ENOSPC")):
    root.mkdir()
    command = [sys.executable, str(HERE / "sweep.py"), scenario, str(root), argument, *faults]
    subprocess.run(command, check=True, timeout=300)
    runs = json.loads((root / "runs.json").read_text())
    counts = {fault: sum(run["fault"] == fault for run in runs) for fault in faults}
    return runs, counts


def told(folder, word):
    path = folder / "told"
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith(word)]


def reopened(folder):
    """The buffer after the restart, and how long that took."""
    started = time.monotonic()
    buffer = Buffer(folder / "data")
    buffer.recover(10)
    return buffer, time.monotonic() - started


def held(buffer):
    """What the buffer gives back, by SOP Instance UID; every row that is not purged must be readable."""
    rows = buffer.database.query(
        "SELECT sop_instance_uid, digest, segment, position FROM instances WHERE purged_s IS NULL"
    )
    return {uid: bytes(buffer.segments.read(Place(segment, at), digest)) for uid, digest, segment, at in rows}


def report(name, counts, longest_s):
    print(f"{name}: {counts}, ready again after {longest_s:.2f} s at most")


def test_receiving(tmp_path):
    runs, counts = sweep("receive", tmp_path / "runs")
    longest = 0.0
    for run in runs:
        folder = tmp_path / "runs" / run["folder"]
        assert run["status"] == (9 if run["fault"] == "KILL" else 0), run
        buffer, took = reopened(folder)
        longest = max(longest, took)
        kept = held(buffer)
        assert {f"1.{n}": content(n) for n in told(folder, "kept")}.items() <= kept.items(), run
        assert buffer.counts()["conflicts"] == 0, run
        assert buffer.first_broken_audit_row() is None, run
        buffer.close()
    report("receive", counts, longest)
    assert min(counts.values()) > 30
    assert longest < 5


@pytest.mark.parametrize("scenario", ["receive_dicom", "stow"])
def test_what_was_acknowledged_over_the_wire_is_here(tmp_path, scenario):
    runs, counts = sweep(scenario, tmp_path / "runs", faults=("KILL", "EIO"))
    longest = 0.0
    for run in runs:
        folder = tmp_path / "runs" / run["folder"]
        buffer, took = reopened(folder)
        longest = max(longest, took)
        kept = {uid: data[-len(content(0)) :] for uid, data in held(buffer).items()}
        assert {f"1.{n}": content(n) for n in told(folder, "kept")}.items() <= kept.items(), run
        assert buffer.counts()["conflicts"] == 0, run
        buffer.close()
    report(scenario, counts, longest)
    assert min(counts.values()) > 10
    assert longest < 5


def test_committing(tmp_path):
    runs, counts = sweep("commit", tmp_path / "runs", faults=("KILL",))
    longest = 0.0
    for run in runs:
        folder = tmp_path / "runs" / run["folder"]
        buffer, took = reopened(folder)
        longest = max(longest, took)
        states = "SELECT i.sop_instance_uid, d.state FROM instances i JOIN deliveries d ON d.instance_id = i.id"
        rows, kept = dict(buffer.database.query(states)), held(buffer)
        if told(folder, "kept"):
            assert len(rows) == 2, run
        for n in told(folder, "committed"):
            assert rows[f"1.{n}"] == "committed", run
        for uid, state in rows.items():
            assert uid in kept or state == "committed", (run, uid)
        buffer.close()
    report("commit and purge", counts, longest)
    assert counts["KILL"] > 30
    assert longest < 5


def finish(folder, port):
    """Go on where the process was; gives the counts at the end."""
    buffer, took = reopened(folder)
    now = 1000
    while build_next(buffer, lambda key, text: None, now):
        pass
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", timeout_s=5)
    destination = Destination("pacs", peer, buffer, Waits(), lambda key, text: None)
    while destination.step(now):
        now += 100
    destination._hang_up()
    assert buffer.first_broken_audit_row() is None
    held(buffer)
    counts = buffer.counts()
    buffer.close()
    return counts, took


def test_spooling_building_and_sending(tmp_path, scp, make_spooled):
    port, got = scp()
    made = [make_spooled(n, denoised=False, shape=(4, 4)) for n in range(2)]
    (tmp_path / "jobs").write_bytes(pickle.dumps([pack(one, 5) for one in made]))
    runs, counts = sweep("deliver", tmp_path / "runs", f"{port},{tmp_path / 'jobs'}", ("KILL", "EIO"))
    longest = 0.0
    for run in runs:
        folder = tmp_path / "runs" / run["folder"]
        spooled = told(folder, "spooled")
        del got[:]
        after, took = finish(folder, port)
        longest = max(longest, took)
        assert after["sent"] == after["produced"] >= len(spooled), run
        assert after["jobs"] == after["jobs_quarantined"] == after["conflicts"] == after["quarantined"] == 0, run
        assert len({dcmread(BytesIO(one.data)).SOPInstanceUID for one in got}) == len(got), run
    report("spool, build, send", counts, longest)
    assert min(counts.values()) > 30
    assert longest < 5


def test_purging(tmp_path):
    runs, counts = sweep("purge", tmp_path / "runs", faults=("KILL",))
    longest = 0.0
    for run in runs:
        folder = tmp_path / "runs" / run["folder"]
        buffer, took = reopened(folder)
        longest = max(longest, took)
        rows = dict(
            buffer.database.query(
                "SELECT i.sop_instance_uid, d.state FROM instances i JOIN deliveries d ON d.instance_id = i.id"
            )
        )
        kept = held(buffer)
        if told(folder, "kept"):
            assert len(rows) == 3, run
        for uid, state in rows.items():
            assert uid in kept or state == "sent", (run, uid)
        buffer.close()
    report("purge", counts, longest)
    assert counts["KILL"] > 30
    assert longest < 5


def test_nothing_is_acknowledged_before_its_fdatasync(tmp_path):
    """Power loss: the order of the calls, since the page cache survives a kill."""
    trace = tmp_path / "trace"
    prepare(tmp_path)
    script = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import sweep_scenarios;"
        "told = os.open(sys.argv[2] + '/told', os.O_WRONLY | os.O_CREAT);"
        "sweep_scenarios.receive(Path(sys.argv[2]), lambda line: os.write(told, line.encode()), '')"
    )
    calls = "trace=pwrite64,fdatasync,fsync,write,ftruncate,openat"
    command = ["strace", "-f", "-y", "-qq", "-o", str(trace), "-e", calls, sys.executable, "-c", script]
    subprocess.run([*command, str(HERE), str(tmp_path)], check=True, timeout=60)
    unsynced, acknowledged, folder_synced = 0, 0, False
    for line in trace.read_text().splitlines():
        if ".segment>" in line:
            unsynced += "pwrite64(" in line
            unsynced = 0 if re.search(r"fdatasync\(.*\) += 0", line) else unsynced
        folder_synced |= bool(re.search(r"fsync\(\d+<[^>]*/segments>\) += 0", line))
        if re.search(r'write\(.*"kept', line):
            assert unsynced == 0 and folder_synced, line
            acknowledged += 1
    assert acknowledged == 4
