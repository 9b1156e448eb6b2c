# SPDX-License-Identifier: Apache-2.0
"""What sweep.py does while faults hit it. Each tells what it was promised, line by line."""

import pickle
import threading
from pathlib import Path

from appliance.buffer import Buffer, NewInstance
from appliance.buffer.commitments import Commitments
from appliance.dicom.association import Association
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Destination
from appliance.dicom.part10 import header
from appliance.dicom.receive import Receiver
from appliance.dicom.web.stow import StowRequest
from appliance.errors import DeliveryError, StorageError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination, Settings
from appliance.simulate.free_ports import free_ports

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


def encoded(n):
    """A data set that says it is instance n."""
    uid = f"1.{n}".encode() + b"\0"
    return b"\x08\0\x16\0\x1a\0\0\0" + MR.encode() + b"\0\x08\0\x18\0\x04\0\0\0" + uid[:4] + content(n)


def receive_dicom(folder, tell, argument):
    """The whole receiver over a real socket; its peer sends again what is refused, or what broke."""
    (port,) = free_ports(1)
    settings = Settings.model_validate(
        {
            "site": {"name": "box", "data_dir": folder / "data"},
            "listen": {"dicom": {"port": port, "bind": "127.0.0.1"}},
            "buffer": {"reserve_gb": 0},
        }
    )
    stop, receiver = threading.Event(), Receiver(settings, silent)
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    while not receiver.port:
        stop.wait(0.001)
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="NEARSCAN", timeout_s=5)
    for n in range(3):
        for _attempt in range(3):
            try:
                with Association("box", peer, [(MR, IMPLICIT)]) as assoc:
                    assoc.store(MR, f"1.{n}", IMPLICIT, memoryview(encoded(n)))
            except DeliveryError:
                tell(f"refused {n}")
                continue
            tell(f"kept {n}")
            break
    stop.set()
    thread.join(10)
    receiver.close()


def stow(folder, tell, _):
    """Three parts by STOW-RS, the same request again where something was refused."""
    buffer = Buffer(folder / "data")
    parts = (b"--B\r\n\r\n" + header(MR, f"1.{n}", IMPLICIT) + encoded(n) + b"\r\n" for n in range(3))
    body = b"".join(parts) + b"--B--"
    for _attempt in range(3):
        request = StowRequest(buffer, b"B", "", "127.0.0.1", silent)
        try:
            for at in range(0, len(body), 5000):
                request.feed(body[at : at + 5000])
            request.finish()
            buffer.index()
        except StorageError:
            tell("failed")
        code, said = request.answer()
        for item in said.get("00081199", {}).get("Value", ()):
            tell(f"kept {item['00081155']['Value'][0][2:]}")
        if code == 200:
            break
    buffer.close()


def commit(folder, tell, _):
    """Two instances are sent, and committed to in two reports; then purged."""
    buffer = Buffer(folder / "data")
    for n in range(2):
        buffer.put_instance(NewInstance(content(n), MR, f"1.{n}", IMPLICIT, destinations=("pacs",)), n)
    tell("kept 2")
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 5), 5, enough="committed")
    commitments = Commitments(buffer.database)
    for n in range(2):
        commitments.begin(f"2.25.{n}", "pacs", commitments.uncommitted("pacs", 6, 6), 6)
        tell(f"asked {n}")
        commitments.report(f"2.25.{n}", {f"1.{n}"}, {}, 7)
        tell(f"committed {n}")
        buffer.purge(1e9, 0)
    buffer.close()
