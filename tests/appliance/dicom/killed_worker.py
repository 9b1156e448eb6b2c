# SPDX-License-Identifier: Apache-2.0
"""Spools, builds and sends in forked children, each of which kills itself one step later than the one before.

Run by test_killed.py: ``killed_worker.py FOLDER PORT JOBS``. A step is a call that changes files, or a statement of
SQL. Each child has its own folder and writes there, after each acknowledgement, what it was told.
"""

import os
import pickle
import signal
import sys
from pathlib import Path

from appliance.buffer import Buffer
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Destination
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

STRIDE = 4  # every fourth step keeps the test short


class Fuse:
    """Kills this process at the n-th step."""

    def __init__(self, n):
        self.left = n

    def step(self, *_):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, call):
        def stepped(*args, **kwargs):
            self.step()
            return call(*args, **kwargs)

        return stepped


def work(folder, port, jobs):
    buffer = Buffer(folder / "data")
    buffer.database._conn.set_trace_callback(fuse.step)
    acknowledged = os.open(folder / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", timeout_s=5)
    destination = Destination("pacs", peer, buffer, Waits(), lambda key, text: None)
    for n, job in enumerate(jobs):
        buffer.put_jobs([job], 1)
        WRITE(acknowledged, b"spooled %d\n" % n)
        build_next(buffer, lambda key, text: None, 1)
        destination.step(1)
        WRITE(acknowledged, b"sent %d\n" % n)
    destination._hang_up()
    buffer.close()


if __name__ == "__main__":
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    jobs = pickle.loads(Path(sys.argv[3]).read_bytes())
    WRITE = os.write
    for n in range(1, 1000, STRIDE):
        folder = root / f"{n:03d}"
        folder.mkdir()
        pid = os.fork()
        if pid == 0:
            fuse = Fuse(n)
            for name in ("fsync", "fdatasync", "ftruncate", "pwrite", "write", "open"):
                setattr(os, name, fuse.before(getattr(os, name)))
            work(folder, port, jobs)
            os._exit(0)
        if os.waitpid(pid, 0)[1] == 0:
            break
