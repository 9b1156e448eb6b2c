# SPDX-License-Identifier: Apache-2.0
"""What sweep.py does while faults hit it: receive, deliver, purge. Each tells what it was promised, line by line."""

import pickle
from pathlib import Path

from appliance.buffer import Buffer, NewInstance
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Destination
from appliance.errors import StorageError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

MR, IMPLICIT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.1.2"


def silent(key, text):
    pass


def content(n):
    return b"instance %d " % n * 700


def prepare(folder):
    """A buffer that ran before: its tables are there."""
    Buffer(folder / "data").close()


def receive(folder, tell, _):
    """Take four instances, each acknowledged before it is indexed; what is refused comes again."""
    buffer = Buffer(folder / "data")
    for n in range(4):
        for _attempt in range(3):
            try:
                with buffer.writer() as writer:
                    writer.write(content(n)[:3000])
                    writer.write(content(n)[3000:])
                    writer.commit(NewInstance(b"", MR, f"1.{n}", IMPLICIT, origin="received"), n)
            except StorageError:
                tell(f"refused {n}")
                continue
            tell(f"kept {n}")
            break
        try:
            buffer.index()
        except StorageError:
            tell("not indexed")
    buffer.close()


def deliver(folder, tell, argument):
    """Spool, build and send two images."""
    port, jobs = argument.split(",", 1)
    peer = DicomDestination(host="127.0.0.1", port=int(port), ae_title="PEER", timeout_s=5)
    buffer = Buffer(folder / "data")
    destination = Destination("pacs", peer, buffer, Waits(), silent)
    for n, job in enumerate(pickle.loads(Path(jobs).read_bytes())):
        for _attempt in range(3):
            try:
                buffer.put_jobs([job], 1)
            except StorageError:
                tell(f"refused {n}")
                continue
            tell(f"spooled {n}")
            break
        for attempt in range(3):
            try:
                build_next(buffer, silent, 1 + 100 * attempt)
                destination.step(1 + 100 * attempt)
            except StorageError:
                tell("failed")
    destination._hang_up()
    buffer.close()


def purge(folder, tell, _):
    """Three instances, two of them delivered; purge those, then their segment."""
    first = Buffer(folder / "data")
    for n in range(3):
        first.put_instance(NewInstance(content(n), MR, f"1.{n}", IMPLICIT, destinations=("pacs",)), n)
    tell("kept 3")
    first.outbox.mark_sent(first.outbox.claim("pacs", 5, limit=2), 5)
    first.close()
    second = Buffer(folder / "data")
    while second.purge(1e9, 0):
        pass
    tell("purged 2")
    second.outbox.mark_sent(second.outbox.claim("pacs", 1e9), 1e9)
    tell("sent 3")
    for _attempt in range(2):
        second.purge(2e9, 0)
    second.close()
