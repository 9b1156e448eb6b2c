# SPDX-License-Identifier: Apache-2.0
"""kill -9 at every fourth step of spooling, building and sending: nothing that was acknowledged is lost.

This proves order and atomicity for the death of a process; the page cache survives it, so it proves no fsync.
"""

import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from appliance.buffer import Buffer
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Destination
from appliance.dicom.spool import pack
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

WORKER = Path(__file__).with_name("killed_worker.py")


def no_alarm(key, text):
    assert text == "", (key, text)


def finish(folder, port):
    """Go on where the killed process was; gives the counts before and after."""
    buffer = Buffer(folder / "data")
    buffer.recover(2)
    before = buffer.counts()
    while build_next(buffer, no_alarm, 2):
        pass
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", timeout_s=5)
    destination = Destination("pacs", peer, buffer, Waits(), no_alarm)
    while destination.step(2):
        pass
    destination._hang_up()
    assert buffer.first_broken_audit_row() is None
    after = buffer.counts()
    buffer.close()
    return before, after


def test_a_kill_at_any_step_loses_nothing_that_was_acknowledged(tmp_path, scp, make_spooled):
    port, got = scp()
    made = [make_spooled(n, denoised=False, shape=(4, 4)) for n in range(2)]
    (tmp_path / "jobs").write_bytes(pickle.dumps([pack(one, 5) for one in made]))
    (tmp_path / "runs").mkdir()
    subprocess.run(
        [sys.executable, str(WORKER), str(tmp_path / "runs"), str(port), str(tmp_path / "jobs")],
        check=True,
        timeout=120,
    )
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) > 20
    for folder in folders:
        path = folder / "acknowledged"
        acknowledged = path.read_text().split("\n") if path.exists() else []
        n_spooled, n_sent = (sum(line.startswith(word) for line in acknowledged) for word in ("spooled", "sent"))
        del got[:]
        before, after = finish(folder, port)
        assert before["sent"] >= n_sent, folder
        assert before["produced"] + before["jobs"] >= n_spooled, folder
        assert n_spooled <= after["sent"] == after["produced"] <= before["produced"] + before["jobs"], folder
        assert after["jobs"] == after["conflicts"] == after["quarantined"] == 0, folder
        numbers = [dcmread(BytesIO(received.data)).InstanceNumber for received in got]
        assert len(numbers) == after["sent"] - before["sent"], folder
