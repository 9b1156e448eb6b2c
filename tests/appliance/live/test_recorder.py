# SPDX-License-Identifier: Apache-2.0
"""What is recorded, and that a disk which is full, slow or broken ends the recording and nothing else."""

import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading

import pytest
from waiting import wait_for

from appliance.context import Context
from appliance.live import recorder
from appliance.live.recorder import Record, Recorder
from appliance.recording import MAX_PIECE_BYTES, Recording
from appliance.tables import size


class Box:
    """A recorder in a folder, with the alarms it raises."""

    def __init__(self, folder, max_gb=1.0, reserve_bytes=0):
        self.alarms, self.said = {}, []
        context = Context("mri_live", folder, folder, reserve_bytes=reserve_bytes, alarm=self._alarm)
        self.recorder = Recorder(Record(max_gb=max_gb), "mrd", context)

    def _alarm(self, key, text):
        self.alarms[key] = text
        self.said.append(text)

    def record(self, *pieces, peer="192.0.2.1:5"):
        tape = self.recorder.begin(peer)
        for piece in pieces:
            tape.write(piece)
        tape.close()
        return tape

    def finish(self):
        """Close, and give (pieces, why it is cut) of every recording, oldest first."""
        self.recorder.close()
        return [read(path) for path in sorted(self.recorder.folder.glob("*"))]


def read(path):
    with Recording(path) as recording:
        return [piece.data for piece in recording.pieces()], recording.cut


def test_two_connections_at_once_have_a_file_each(tmp_path):
    box = Box(tmp_path)
    one, two = box.recorder.begin("192.0.2.1:5"), box.recorder.begin("[2001:db8::1]:6")
    space = bytearray(b"abc")
    one.write(memoryview(space))
    space[:] = b"xyz"  # a socket's buffer is written over
    two.write(b"1")
    one.write(memoryview(space))
    two.close()
    one.close()
    assert sorted(box.finish()) == [([b"1"], ""), ([b"abc", b"xyz"], "")]
    assert box.alarms == {"recording": ""}
    paths = sorted(box.recorder.folder.glob("*"))
    assert {path.name[20:25] for path in paths} == {"-mrd-"}
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600, 0o600]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (tmp_path / "recordings", paths[0].parent)} == {0o700}
    with Recording(paths[0]) as recording:
        assert recording.header.pipeline == "mri_live"
    assert box.recorder.status()["recording"] == {"running": 0, "bytes": 7, "last_stop": ""}


def test_what_sends_nothing_leaves_no_file(tmp_path):
    box = Box(tmp_path)
    box.record()
    assert box.finish() == []


def test_off_is_off(tmp_path):
    recorder = Recorder(None, "mrd", Context("mri_live", tmp_path, tmp_path))
    assert recorder.begin("192.0.2.1:5") is None
    recorder.close()
    assert (recorder.status(), list(tmp_path.iterdir())) == ({}, [])


def test_large_pieces_are_split_and_whole(tmp_path):
    box = Box(tmp_path)
    data = bytes(MAX_PIECE_BYTES) + b"end"
    box.record(data)
    [(pieces, cut)] = box.finish()
    assert ([len(piece) for piece in pieces], b"".join(pieces) == data, cut) == ([MAX_PIECE_BYTES, 3], True, "")


def test_the_oldest_make_room(tmp_path):
    box = Box(tmp_path, max_gb=350e-6)
    for n in range(3):
        box.record(bytes([n]) * 100_000)
    assert len(box.finish()) == 3
    paths = sorted(box.recorder.folder.glob("*"))
    for n, path in enumerate(paths):  # within a second their names are in no order
        path.rename(path.with_name(f"2026010{n}T000000Z-mrd-000000.recording"))
    (box.recorder.folder / "notes.txt").write_text("not ours")
    again = Box(tmp_path, max_gb=350e-6)
    again.record(bytes([9]) * 100_000, bytes([9]) * 100_000)
    again.recorder.close()
    left = sorted(path.name[:8] for path in box.recorder.folder.glob("*.recording"))
    assert left[0] == "20260102" and len(left) == 2, "two had to go, the newest stays"
    assert (box.recorder.folder / "notes.txt").exists()
    assert again.alarms == {"recording": ""}


def test_many_small_ones_do_not_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_MOST_FILES", 5)
    box = Box(tmp_path)
    for n in range(12):
        box.record(bytes([n]))
    assert len(box.finish()) == 5
    assert box.alarms == {"recording": ""}


def test_a_recording_larger_than_allowed_stops_with_the_reason(tmp_path):
    box = Box(tmp_path, max_gb=250e-6)
    tape = box.record(*[bytes([n]) * 100_000 for n in range(4)])
    assert box.finish() == [([bytes([n]) * 100_000 for n in range(2)], "it has reached record.max_gb (250 kB)")]
    assert tape.stopped == box.recorder.status()["recording"]["last_stop"]
    assert box.alarms["recording"] == f"recording: stopped: {tape.stopped}; the stream itself goes on"
    next_one = Box(tmp_path, max_gb=250e-6)
    next_one.record(b"small")
    assert ([b"small"], "") in next_one.finish()
    assert next_one.alarms == {"recording": ""}, "the alarm ends when a recording begins"


def test_a_connection_that_goes_on_is_recorded_in_several_files_and_its_oldest_go(tmp_path):
    box = Box(tmp_path, max_gb=400e-6)
    tape = first = box.recorder.begin("192.0.2.1:5")
    for n in range(20):
        tape.write(bytes([n]) * 60_000)
        tape = tape.at_a_boundary()
        wait_for(lambda tape=tape: tape.n_queued == tape.n_done, "the disk")
    tape.close()
    recordings = box.finish()
    assert tape is not first
    assert all(len(pieces) == 2 and cut == "" for pieces, cut in recordings), "begun anew after a quarter"
    kept = sorted(piece[0] for pieces, _ in recordings for piece in pieces)
    assert kept[-1] == 19 and len(kept) == 6, "what is newest"
    assert box.alarms == {"recording": ""}


def test_what_was_stopped_begins_again_at_a_boundary(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "_AGAIN_NS", 0)
    box = Box(tmp_path, max_gb=50e-6)
    tape = box.recorder.begin("192.0.2.1:5")
    tape.write(bytes(60_000))
    wait_for(lambda: tape.stopped, "the stop")
    again = tape.at_a_boundary()
    again.write(b"x")
    again.close()
    assert box.finish() == [([b"x"], "")]
    assert box.said == [
        "recording: stopped: it has reached record.max_gb (50 kB); the stream itself goes on",
        "",
    ]


def test_twice_the_reserve_is_left_to_results(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    box = Box(tmp_path, reserve_bytes=free)
    tape = box.record(b"x")
    assert box.finish() == []
    assert tape.stopped.endswith(f"{size(2 * free)} (twice buffer.reserve_gb) are kept for results")


IN_A_PROCESS_OF_ITS_OWN = """
import sys
from pathlib import Path
from appliance.live import recorder
from appliance.context import Context
from appliance.live.recorder import Record, Recorder

def alarm(key, text):
    print(f"{key}: {text}", flush=True)

folder = Path(sys.argv[1])
recorder = Recorder(Record(), "mrd", Context("x", folder, folder, alarm=alarm))
tape = recorder.begin("192.0.2.1:5")
"""


def start(command, script, folder):
    code = IN_A_PROCESS_OF_ITS_OWN + textwrap.dedent(script)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, sys.executable, "-c", code, str(folder)], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


RECORD_AND_READ = """
        for n in range(40):
            tape.write(bytes([n]) * 100_000)
        tape.close()
        recorder.close()
        from appliance.recording import Recording
        (path,) = recorder.folder.glob("*")
        with Recording(path) as recording:
            pieces = [piece.data for piece in recording.pieces()]
        whole = pieces == [bytes([n]) * 100_000 for n in range(len(pieces))]
        print(whole, len(pieces), recording.cut)
        """
MOUNT = 'mount -t tmpfs -o size=1m full "$0" && exec "$@"'
FULL = "inject=writev:error=ENOSPC:when=7"  # magic, header, five pieces


@pytest.mark.parametrize(
    ("command", "script", "n_whole", "reason"),
    [
        (["unshare", "-rm", "sh", "-c", MOUNT], "", 10, r"4\d\.\d+ kB are free, and 0 B .* are kept for results"),
        (
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=writev", "-e", FULL],
            "",
            4,
            "No space left on device",
        ),
        # A write of which the first half succeeds, as on a disk that fills up meanwhile.
        ([], "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (650_000, 650_000))", 6, "File too large"),
    ],
)
@pytest.mark.peer  # strace
def test_a_full_disk_ends_the_recording_at_a_whole_piece(tmp_path, command, script, n_whole, reason):
    folder = [str(tmp_path)] if "unshare" in command else []
    output, errors = start([*command, *folder], f"\n        {script}" + RECORD_AND_READ, tmp_path).communicate(
        timeout=60
    )
    assert errors == ""
    cleared, alarm, read = output.splitlines()
    assert cleared == "recording: "
    assert re.fullmatch(f"recording: recording: stopped: {reason}; the stream itself goes on", alarm)
    assert re.fullmatch(f"True {n_whole} {reason}", read)


@pytest.mark.peer  # strace
def test_a_disk_that_stalls_ends_the_recording_and_holds_up_nobody(tmp_path):
    stall = "inject=writev:delay_enter=600000000"  # ten minutes each: who waited for one would not come to the end
    script = """
        for n in range(100):
            tape.write(bytes(1 << 20))
        tape.close()
        print(tape.stopped, recorder.status()["recording"]["running"], flush=True)
        other = recorder.begin("192.0.2.1:6")
        other.write(bytes(1 << 20))
        print(other.stopped, flush=True)
        """
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=writev", "-e", stall]
    process = start(command, script, tmp_path)
    watch = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
    watch.start()
    lines = [process.stdout.readline() for _ in range(4)]
    watch.cancel()
    os.killpg(process.pid, signal.SIGKILL)  # the recorder's thread is still in its first write
    process.communicate()
    reason = "the disk does not keep up, 63 MiB wait for it"
    assert lines == [
        f"recording: recording: stopped: {reason}; the stream itself goes on\n",
        f"{reason} 0\n",
        f"recording: recording: stopped: {reason}; the stream itself goes on\n",
        f"{reason}\n",
    ]
