# SPDX-License-Identifier: Apache-2.0
"""The processes of benchmarks/dicom.py, one role each: the servers and senders that are measured, and a raw sender.

python benchmarks/dicom_peers.py ROLE PORT FOLDER [NUMBERS…]
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from appliance.dicom import dimse, negotiation

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
AE_TITLE = "BENCH"
N_WARM = 4  # instances that each association stores before the clock runs
_TIMEOUT_S = 120.0
_BUFFERS_AT_ONCE = 512  # IOV_MAX is 1024
_LOST_S = 5.0  # pynetdicom's requestor can lose a response; then its measurement ends here


def uid(n: int) -> str:
    """The UID of instance `n`; all have the same length."""
    return f"2.25.{10**38 + n}"


def dataset_in(file: bytes) -> memoryview:
    """The data set of a Part 10 file that pydicom wrote: it stands behind group 2 (PS3.10 7.1)."""
    return memoryview(file)[144 + int.from_bytes(file[140:144], "little") :]


def read_instances(folder: Path, numbers: Iterable[int]) -> list[tuple[int, memoryview]]:
    return [(n, dataset_in((folder / f"{n}.dcm").read_bytes())) for n in numbers]


class Link:
    """A blocking socket that acknowledges at once, so that a peer with Nagle on is not waited for."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def send(self, buffers: list[bytes | memoryview]) -> None:
        for start in range(0, len(buffers), _BUFFERS_AT_ONCE):
            batch = [memoryview(buffer) for buffer in buffers[start : start + _BUFFERS_AT_ONCE]]
            while batch:
                sent = self._socket.sendmsg(batch)
                while batch and sent >= len(batch[0]):
                    sent -= len(batch.pop(0))
                if sent:
                    batch[0] = batch[0][sent:]

    def receive(self, n_bytes: int) -> bytes:
        data = b""
        while len(data) < n_bytes:
            part = self._socket.recv(n_bytes - len(data))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if not part:
                raise ConnectionError("the server hung up")
            data += part
        return data


def _data_pdu(piece: memoryview, *, last: bool) -> list[bytes | memoryview]:
    """A P-DATA-TF of context 1 (PS3.8 9.3.5)."""
    return [struct.pack(">BxIIBB", dimse.P_DATA, len(piece) + 6, len(piece) + 2, 1, 2 if last else 0), piece]


class RawSender(Link):
    """An association that stores what was encoded beforehand: the least that a sender can do."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.send([negotiation.request("RAW", AE_TITLE, [(CT, EXPLICIT)])])
        pdu = self._receive_pdu()
        if pdu[0] != dimse.ASSOCIATE_AC:
            self.close()
            raise ConnectionError(f"the association was answered with PDU type 0x{pdu[0]:02X}")
        contexts, self.longest = negotiation.accepted(pdu)
        if contexts.get(1) != EXPLICIT:
            raise ConnectionError("the server does not take CT images in Explicit VR Little Endian")

    def _receive_pdu(self) -> bytes:
        header = self.receive(6)
        return header + self.receive(int.from_bytes(header[2:], "big"))

    def encode(self, n: int, dataset: memoryview) -> list[bytes | memoryview]:
        command = dimse.p_data(1, dimse.store_rq(n % 65535 + 1, CT, uid(n)), self.longest, command=True)
        return [*command, *dimse.p_data(1, dataset, self.longest, command=False)]

    def store(self, buffers: list[bytes | memoryview]) -> None:
        self.send(buffers)
        self.confirm()

    def confirm(self) -> None:
        """Read the answer; anything but success is an error."""
        pdu = self._receive_pdu()
        if pdu[0] != dimse.P_DATA:
            raise ConnectionError(f"a C-STORE was answered with PDU type 0x{pdu[0]:02X}")
        status = dimse.read_command(bytes(next(iter(dimse.fragments(pdu[6:])))[3])).get(0x0900, b"")
        if status != b"\0\0":
            raise ConnectionError(f"a C-STORE was answered with status {status[::-1].hex()}")

    def stream(self, n: int, head: bytes, n_zeros: int) -> None:
        """Store `head` and that many zero bytes, which are never in memory."""
        self.send(list(dimse.p_data(1, dimse.store_rq(n % 65535 + 1, CT, uid(n)), self.longest, command=True)))
        block = memoryview(bytes((self.longest or 1 << 18) - 6))
        self.send(_data_pdu(memoryview(head), last=False))
        for left in range(n_zeros, 0, -len(block)):
            self.send(_data_pdu(block[:left], last=left <= len(block)))
        self.confirm()

    def release(self) -> None:
        self.send([dimse.RELEASE_RQ_PDU])
        self._receive_pdu()
        self.close()


class FloorSender(Link):
    """The same bytes to `serve_floor`."""

    def encode(self, n: int, dataset: memoryview) -> list[bytes | memoryview]:
        del n
        return [len(dataset).to_bytes(8, "big"), dataset]

    def store(self, buffers: list[bytes | memoryview]) -> None:
        self.send(buffers)
        self.receive(1)

    release = Link.close


def _load(sender: RawSender | FloorSender, folder: Path, first: int, step: int, stop: int) -> None:
    """Store instances first, first + step, … below `stop`, after N_WARM of its own that lie behind `stop`."""
    warm = range(stop + first * N_WARM, stop + (first + 1) * N_WARM)
    files = read_instances(folder, chain(warm, range(first, stop, step)))
    encoded = [sender.encode(*each) for each in files]
    for buffers in encoded[:N_WARM]:
        sender.store(buffers)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.monotonic()
    for buffers in encoded[N_WARM:]:
        sender.store(buffers)
    print(json.dumps([started, time.monotonic()]), flush=True)
    sender.release()


def load(port: int, folder: Path, *numbers: int) -> None:
    _load(RawSender(port), folder, *numbers)


def load_floor(port: int, folder: Path, *numbers: int) -> None:
    _load(FloorSender(port), folder, *numbers)


def serve_ours(port: int, folder: Path) -> None:
    from appliance.dicom.receive import Receiver
    from appliance.settings import Settings

    listen = {"dicom": {"ae_title": AE_TITLE, "port": port, "bind": "127.0.0.1", "max_per_address": 64}}
    buffer = {"reserve_gb": 0.0}
    settings = Settings.model_validate({"site": {"name": "b", "data_dir": folder}, "listen": listen, "buffer": buffer})
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Receiver(settings, lambda *words: print(*words, flush=True) if words[-1] else None).run(stop)


def serve_pynetdicom(port: int, folder: Path) -> None:
    """The storage SCP of its documentation, without the debug log."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    def handle_store(event: evt.Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        ds.save_as(folder / ds.SOPInstanceUID, enforce_file_format=True)
        return 0x0000

    ae = AE()
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle_store)])


def serve_floor(port: int, folder: Path) -> None:
    """No DICOM: read, append, fdatasync, answer one byte."""
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            threading.Thread(target=_answer_floor, args=(server.accept()[0], folder), daemon=True).start()


def _answer_floor(link: socket.socket, folder: Path) -> None:
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    fd = os.open(folder / f"{link.fileno()}.segment", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    memory = memoryview(bytearray(1 << 20))
    while header := link.recv(8, socket.MSG_WAITALL):
        n_bytes = int.from_bytes(header, "big")
        link.recv_into(memory, n_bytes, socket.MSG_WAITALL)
        os.write(fd, memory[:n_bytes])
        os.fdatasync(fd)
        link.sendall(b"\0")


def _report_times(n_stored: int, started: float) -> None:
    print(json.dumps([n_stored, time.monotonic() - started]))


def send_ours(port: int, folder: Path, n: int) -> None:
    from appliance.dicom.association import Association
    from appliance.settings import DicomDestination

    peer = DicomDestination(host="127.0.0.1", port=port, ae_title=AE_TITLE)
    with Association("bench", peer, [(CT, EXPLICIT)]) as assoc:
        started = time.monotonic()
        for index in range(n):
            dataset = dataset_in((folder / f"{index}.dcm").read_bytes())
            assoc.store(CT, uid(index), EXPLICIT, dataset)
        _report_times(n, started)


def send_pynetdicom(port: int, folder: Path, n: int) -> None:
    """As its documentation does it: read the file, send the data set."""
    from pydicom import dcmread
    from pynetdicom import AE

    ae = AE()
    ae.add_requested_context(CT, EXPLICIT)
    ae.dimse_timeout = _LOST_S
    assoc = ae.associate("127.0.0.1", port, ae_title=AE_TITLE)
    started = time.monotonic()
    for index in range(n):
        last = time.monotonic()
        if "Status" not in assoc.send_c_store(dcmread(folder / f"{index}.dcm")):
            print(json.dumps([index, last - started]))
            return
    _report_times(n, started)
    assoc.release()


ROLES: dict[str, Callable[..., None]] = {
    role.__name__: role
    for role in (load, load_floor, serve_ours, serve_pynetdicom, serve_floor, send_ours, send_pynetdicom)
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))
