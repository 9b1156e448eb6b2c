# SPDX-License-Identifier: Apache-2.0
"""Runs one scenario again and again, each time with a fault at another system call: ``sweep.py SCENARIO ROOT FAULT…``.

strace is attached to a forked child and, at the n-th call of one kind, kills it or has the call fail. Points are gone
through until the scenario ends before the n-th call. Each run has its own folder, and there a file `told` with a line
for each acknowledgement; `runs.json` in ROOT lists them all. Killing a process proves order and atomicity; the page
cache survives it, so that fsync is proven by the traces of test_kill_sweep.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import sweep_scenarios

from appliance.errors import StorageError

CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "fallocate", "unlink", "rename")
FAULTS = {"KILL": "signal=SIGKILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
MOST = 400  # of one call; a scenario that goes on for longer is too long


def child(scenario, folder, argument, gate):
    """Be the process that the fault hits; it starts when the tracer is there."""
    os.read(gate, 1)
    told = os.open(folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(line):
        os.write(told, f"{line}\n".encode())

    try:
        getattr(sweep_scenarios, scenario)(folder, tell, argument)
    except StorageError as error:  # the process ends, in words, and is started again
        tell(f"ended {error}")
    finally:
        os._exit(0)


def run(scenario, folder, argument, call, fault, n):
    """Give the exit status of one run, and whether the fault was met."""
    shutil.copytree(folder.parent / "prepared", folder)
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        child(scenario, folder, argument, gate)
    os.close(gate)
    trace = folder / "trace"
    inject = f"inject={call}:{FAULTS[fault]}:when={n}"
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", inject, "-p", str(pid)]
    )
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None:
            raise SystemExit("strace cannot attach")
        time.sleep(0.0005)
    os.write(opener, b"x")
    os.close(opener)
    status = os.waitpid(pid, 0)[1]
    tracer.wait()
    met = os.WIFSIGNALED(status) if fault == "KILL" else "INJECTED" in trace.read_text()
    return status, met


def main(scenario, root, argument, faults):
    (root / "prepared").mkdir()
    sweep_scenarios.prepare(root / "prepared")
    runs = []
    for fault in faults:
        for call in CALLS:
            for n in range(1, MOST):
                folder = root / f"{fault}-{call}-{n}"
                status, met = run(scenario, folder, argument, call, fault, n)
                if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
                    raise SystemExit(f"{folder.name}: ended by signal {os.WTERMSIG(status)}")
                if not met:
                    break
                runs.append({"folder": folder.name, "fault": fault, "call": call, "n": n, "status": status})
    (root / "runs.json").write_text(json.dumps(runs))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
