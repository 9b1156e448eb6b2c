# SPDX-License-Identifier: Apache-2.0
"""The simulated machine, read by a client of another hand (pyigtl) and by our own."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyigtl
import pytest

from appliance.igtl.rigid import rigid_fault
from appliance.simulate import ultrasound as plus
from appliance.ultrasound import phantom

WAIT_S = 20


@pytest.fixture
def server():
    running = plus.UltrasoundServer(0)
    yield running
    running.close()


def test_pyigtl_reads_pictures_and_poses(server):
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", server.port)
    assert server.connected.wait(WAIT_S)
    stop = threading.Event()
    sending = threading.Thread(
        target=plus.stream, args=(server, plus.phantom_pictures(30)), kwargs={"rate_hz": 30, "stop": stop}
    )
    sending.start()
    names = {}
    end = time.monotonic() + WAIT_S
    while len(names) < 4 and time.monotonic() < end:
        for message in client.get_latest_messages():
            names[message.device_name] = message
        time.sleep(0.01)
    stop.set()
    sending.join()
    client.stop()
    assert set(names) == {"Image_Image", "ProbeToTracker", "ReferenceToTracker", "StylusToTracker"}
    assert names["Image_Image"].image.shape == (1, 256, 300) and names["Image_Image"].image.max() > 100
    assert rigid_fault(names["ProbeToTracker"].matrix) == ""
    np.testing.assert_allclose(
        names["ReferenceToTracker"].matrix, phantom.picture(0).transforms["ReferenceToTracker"], atol=1e-4
    )


def test_all_messages_of_a_picture_have_one_time_and_faults_are_where_they_were_asked_for():
    picture = phantom.picture(1.0)
    plain = list(plus.messages(picture, 10**18))
    assert {message.time_ns for message in plain} == {10**18}
    late = list(plus.messages(picture, 10**18, skew_ns=5))
    assert [message.time_ns - 10**18 for message in late] == [0, 5, 5, 5]
    hidden = list(plus.messages(picture, 10**18, missing=True))
    assert all(np.array_equal(message.content.matrix, np.eye(4)) for message in hidden[1:])


def test_the_probe_of_the_phantom_moves_as_a_hand_does():
    places = np.array([phantom.probe_to_reference(t) for t in np.arange(0, 20, 0.02)])
    speed = np.linalg.norm(np.diff(places[:, :3, 3], axis=0), axis=1) / 0.02
    assert 5 < speed.mean() < 50 and speed.max() < 100
    assert not any(rigid_fault(place) for place in places)


def test_a_sequence_goes_to_and_fro(tmp_path):
    frames = np.arange(3, dtype=np.uint8).reshape(3, 1, 1)
    file = tmp_path / "x.igs.mha"
    file.write_bytes(
        b"NDims = 3\nDimSize = 1 1 3\nElementType = MET_UCHAR\nSeq_Frame0000_Timestamp = 1\n"
        b"ElementDataFile = LOCAL\n" + frames.tobytes()
    )
    shown = [picture.array[0, 0] for picture in itertools.islice(plus.file_pictures(file), 9)]
    assert shown == [0, 1, 2, 1, 0, 1, 2, 1, 0]


def test_the_command(free_port, tmp_path):
    command = [sys.executable, "-m", "appliance", "simulate", "ultrasound"]
    process = subprocess.Popen(
        [*command, "--port", str(free_port), "--rate", "50"], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout.readline() == f"listening on 127.0.0.1:{free_port}\n"
    taken = subprocess.run([*command, "--port", str(free_port)], capture_output=True, text=True, check=False)
    assert taken.returncode == 1 and "choose another port or address" in taken.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 0 and "frames sent" in process.stdout.read()
    process.stdout.close()
    file = tmp_path / "no.mha"
    file.write_bytes(b"no")
    wrong = subprocess.run([*command, str(file)], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "expected three dimensions" in wrong.stderr and "Traceback" not in wrong.stderr
