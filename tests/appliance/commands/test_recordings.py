# SPDX-License-Identifier: Apache-2.0
"""nearscan recordings and nearscan replay: words and exit codes."""

import json
import socket
import threading
import time

import pytest
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.context import Context
from appliance.igtl import Message, Status, encode
from appliance.live.recorder import Record, Recorder
from appliance.mrd import messages as m
from appliance.tables import size
from operators.sources import mrd


@pytest.fixture
def nearscan():
    return lambda *arguments: CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(f"site: {{name: t, data_dir: {tmp_path}, run_dir: {tmp_path / 'run'}}}\n")
    return path


def record(folder, protocol, *pieces, pipeline="live"):
    recorder = Recorder(Record(), protocol, Context(pipeline, folder, folder))
    tape = recorder.begin("192.0.2.1:5")
    for piece in pieces:
        tape.write(piece)
    tape.close()
    recorder.close()
    return max(recorder.folder.glob("*"), key=lambda path: path.stat().st_mtime_ns)


def test_recordings_are_listed_with_what_is_wrong(nearscan, site, tmp_path):
    assert nearscan("recordings", "--config", site).output == "began (UTC)  pipeline  protocol  size  file\n"
    path = record(tmp_path, "mrd", b"x" * 900)
    (path.parent / "a.recording").write_text("no recording")
    done = nearscan("recordings", "--config", site)
    _, line, problem = done.output.splitlines()
    assert line.split()[2:] == ["live", "mrd", *size(path.stat().st_size).split(), str(path)]
    assert problem == "recording 'a.recording': does not begin as one; choose a file that `recordings` lists"
    (row,) = json.loads(nearscan("recordings", "--config", site, "--json").stdout)
    assert (row["file"], row["protocol"], row["pipeline"], row["peer"]) == (str(path), "mrd", "live", "192.0.2.1:5")
    assert row["bytes"] == path.stat().st_size


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(nearscan, site, tmp_path):
    (tmp_path / "recordings").write_text("")
    done = nearscan("recordings", "--config", site)
    words = f"{tmp_path / 'recordings'}: cannot be read: Not a directory; run it as the user of nearscan\n"
    assert (done.exit_code, done.stdout, done.stderr) == (1, "", words)


def test_a_replay_to_the_appliance_says_what_it_answered(nearscan, tmp_path):
    path = record(tmp_path, "mrd", m.encode_config_file("x"), m.encode_close())
    source = mrd.make(mrd.Settings(port=0, bind="127.0.0.1"), Context("live", tmp_path, tmp_path))
    thread = threading.Thread(target=source.run, args=(lambda message: None,))
    thread.start()
    while not (port := source.status()["port"]):
        time.sleep(0.005)
    done = nearscan("replay", path, "--to", f"127.0.0.1:{port}", "--speed", 0)
    source.stop()
    thread.join()
    assert done.exit_code == 0
    assert done.stdout == "1.028 kB in 2 pieces sent, 0 images came back\n"
    assert done.stderr.startswith("mrd of pipeline live, recorded 20")
    assert done.stderr.endswith("UTC\nnearscan: scan incomplete: mrd: no data came before CLOSE\n")


def test_a_replay_to_nobody(nearscan, tmp_path, free_port):
    path = record(tmp_path, "mrd", b"x")
    done = nearscan("replay", path, "--to", f"127.0.0.1:{free_port}")
    assert done.exit_code == 1
    assert f"Error: replay: to 127.0.0.1:{free_port}: Connection refused; is 'nearscan run' up?" in done.stderr
    for address in ("nowhere", ":9002", "host:x", "host:0", "host:70000"):
        assert f"replay: --to {address!r} is not HOST:PORT" in nearscan("replay", path, "--to", address).stderr


def test_a_file_that_is_no_recording(nearscan, site):
    done = nearscan("replay", site)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "recording 'site.yaml': does not begin as one; choose a file that `recordings` lists\n"


def test_an_openigtlink_recording_is_served(nearscan, tmp_path, free_port):
    path = record(tmp_path, "openigtlink", encode(Message(Status(1), "x")))
    got = []

    def connect():
        while True:
            try:
                with socket.create_connection(("127.0.0.1", free_port)) as client:
                    while data := client.recv(1000):
                        got.append(data)
                return
            except ConnectionRefusedError:
                time.sleep(0.01)

    client = threading.Thread(target=connect)
    client.start()
    done = nearscan("replay", path, "--port", free_port)
    client.join()
    assert (done.exit_code, done.stdout) == (0, f"{len(b''.join(got))} B in 1 pieces sent, 1 messages\n")
    assert f"waiting on 127.0.0.1:{free_port} for the appliance to connect" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = nearscan("replay", path, "--port", port)
    assert done.exit_code == 1
    assert f"replay: cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
