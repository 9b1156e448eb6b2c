# SPDX-License-Identifier: Apache-2.0
"""Kills the receiver and the deliverer at random times, again and again, and accounts for every instance.

    python benchmarks/soak.py [--kills 1000] [--seed 1] [--folder DIR] [--json FILE]

Both run in one process that is forked from one that has imported everything, so that it is up in milliseconds. Three
senders send small instances to it, each again until it is acknowledged; a PACS takes what comes out. After the last
kill the process may finish. Then every instance that was ever acknowledged must be at the PACS, its bytes equal.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from appliance.dicom.acceptor import Acceptor
from appliance.dicom.association import Association
from appliance.dicom.deliver import Deliverer
from appliance.dicom.receive import Receiver
from appliance.dicom.services import Incoming, NRequest, NResponse
from appliance.errors import DeliveryError
from appliance.settings import DicomDestination, Settings

MR, IMPLICIT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2"
SHORTEST_S, LONGEST_S = 0.01, 0.25  # from the start of the process to its kill
N_SENDERS = 3


class Pacs:
    """Keeps the SHA-256 of what comes, by SOP Instance UID."""

    def __init__(self) -> None:
        self.got: dict[str, str] = {}
        self.times = Counter[str]()
        self.acceptor = Acceptor(("127.0.0.1", 0), self)

    def store(self, incoming: Incoming) -> Taking:
        return Taking(self, incoming.sop_instance_uid)

    def normalized(self, request: NRequest) -> NResponse:
        return NResponse(0x0211)

    def ended(self, association: str, *, released: bool) -> None:
        pass


class Taking:
    def __init__(self, pacs: Pacs, uid: str) -> None:
        self._pacs, self._uid, self._hash = pacs, uid, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._hash.update(data)

    def commit(self) -> int:
        self._pacs.got[self._uid] = self._hash.hexdigest()
        self._pacs.times[self._uid] += 1
        return 0

    def close(self) -> None:
        pass


def settings_for(folder: Path, port: int, pacs_port: int) -> Settings:
    peer = {"host": "127.0.0.1", "port": pacs_port, "ae_title": "PACS", "timeout_s": 5}
    return Settings.model_validate(
        {
            "site": {"name": "soak", "data_dir": folder / "data"},
            "listen": {"dicom": {"port": port, "bind": "127.0.0.1"}},
            "destinations": {"pacs": {"dicom": peer}},
            "routes": {"everything": {"to": ["pacs"]}},
            "buffer": {"reserve_gb": 0, "retry_min_s": 0.05, "retry_max_s": 0.2, "keep_delivered_h": 0},
        }
    )


def appliance(settings: Settings) -> None:
    """Be receiver and deliverer until killed."""
    stop = threading.Event()
    receiver, deliverer = (kind(settings, lambda key, text: None) for kind in (Receiver, Deliverer))
    threading.Thread(target=receiver.run, args=(stop,), daemon=True).start()
    deliverer.run(stop)


def spawner(folder: Path, port: int, pacs_port: int) -> None:
    """Fork an appliance for each line that comes, and say its process id."""
    settings = settings_for(folder, port, pacs_port)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            appliance(settings)
            os._exit(0)
        print(pid, flush=True)


class Sender(threading.Thread):
    """Sends instance after instance, each until it is acknowledged."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(daemon=True)
        self._number, self.stopping = number, threading.Event()
        self._peer = DicomDestination(host="127.0.0.1", port=port, ae_title="NEARSCAN", timeout_s=5)
        self.acknowledged: dict[str, str] = {}
        self.n_failures = 0

    def run(self) -> None:
        noise = random.Random(self._number)
        n = 0
        while not self.stopping.is_set():
            uid, pixels = f"1.2.{self._number}.{n}", noise.randbytes(noise.randrange(100, 60_000))
            data = b"\x08\0\x05\0" + len(pixels).to_bytes(4, "little") + pixels
            while not self._send(uid, data) and not self.stopping.is_set():
                self.n_failures += 1
                self.stopping.wait(0.005)
            n += 1

    def _send(self, uid: str, data: bytes) -> bool:
        try:
            with Association("soak", self._peer, [(MR, IMPLICIT)]) as assoc:
                assoc.store(MR, uid, IMPLICIT, memoryview(data))
        except DeliveryError:
            return False
        self.acknowledged[uid] = hashlib.sha256(data).hexdigest()
        return True


def soak(options: argparse.Namespace, folder: Path) -> dict[str, int | float]:
    pacs = Pacs()
    with_port = Acceptor(("127.0.0.1", 0), pacs)
    port = with_port.address[1]
    with_port.close()
    command = [sys.executable, __file__, "--role", "spawner", "--folder", str(folder)]
    command += ["--ports", str(port), str(pacs.acceptor.address[1])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None

    def start() -> int:
        process.stdin.write("start\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return int(process.stdout.readline())  # type: ignore[union-attr]

    senders = [Sender(number, port) for number in range(N_SENDERS)]
    for sender in senders:
        sender.start()
    chance = random.Random(options.seed)
    started = time.monotonic()
    for n in range(options.kills):
        pid = start()
        time.sleep(chance.uniform(SHORTEST_S, LONGEST_S))
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.001)
        if n % 100 == 99:
            print(f"{n + 1} kills, {sum(len(one.acknowledged) for one in senders)} acknowledged", flush=True)
    pid = start()
    for sender in senders:
        sender.stopping.set()
    for sender in senders:
        sender.join()
    acknowledged = {uid: digest for sender in senders for uid, digest in sender.acknowledged.items()}
    wait_for(pacs, acknowledged)
    os.kill(pid, signal.SIGKILL)
    process.stdin.close()
    process.wait()
    return {
        "kills": options.kills,
        "seconds": round(time.monotonic() - started, 1),
        "acknowledged": len(acknowledged),
        "not_acknowledged_and_sent_again": sum(sender.n_failures for sender in senders),
        "at_pacs": len(acknowledged.keys() & pacs.got.keys()),
        "lost": len(acknowledged.keys() - pacs.got.keys()),
        "altered": sum(pacs.got.get(uid, digest) != digest for uid, digest in acknowledged.items()),
        "arrived_more_than_once": sum(times > 1 for times in pacs.times.values()),
    }


def wait_for(pacs: Pacs, acknowledged: dict[str, str], longest_s: float = 60.0) -> None:
    end = time.monotonic() + longest_s
    while acknowledged.keys() - pacs.got.keys() and time.monotonic() < end:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--role", choices=["spawner"], help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        return spawner(options.folder, *options.ports)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = soak(options, Path(folder))
    for name, value in result.items():
        print(f"{name.replace('_', ' '):34} {value}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    sys.exit(1 if result["lost"] or result["altered"] else 0)


if __name__ == "__main__":
    main()
