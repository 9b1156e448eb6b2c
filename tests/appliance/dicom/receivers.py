# SPDX-License-Identifier: Apache-2.0
"""The receiver as a whole, and its acceptor with a writer into memory."""

import threading
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.dicom.acceptor import Acceptor
from appliance.dicom.part10 import header
from appliance.dicom.receive import Receiver
from appliance.dicom.services import NResponse
from appliance.settings import Settings


@contextmanager
def receiving(data_dir, port):
    """A running receiver; it is stopped and closed at the end."""
    settings = {
        "site": {"name": "box", "data_dir": data_dir},
        "listen": {"dicom": {"port": port, "bind": "127.0.0.1"}},
        "buffer": {"reserve_gb": 0},
    }
    one = Receiver(Settings.model_validate(settings), lambda key, text: None)
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    while not one.port:
        stop.wait(0.01)
        assert thread.is_alive()
    try:
        yield one
    finally:
        stop.set()
        thread.join(20)
        one.close()


@dataclass(frozen=True)
class Received:
    """One instance as a Part 10 file."""

    data: bytes
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    peer: str


class Collecting:
    """A writer into memory."""

    def __init__(self, scp, incoming):
        self.scp, self.incoming, self.parts = scp, incoming, []

    def write(self, data):
        self.parts.append(bytes(data))

    def commit(self):
        one = self.incoming
        uids = one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid
        return self.scp.keep(Received(b"".join([header(*uids), *self.parts]), *uids, one.calling_ae_title))

    def close(self):
        pass


class Scp:
    """One acceptor for all tests."""

    def __init__(self):
        self.got, self.status = [], 0
        self.server = Acceptor(("127.0.0.1", 0), self)

    def store(self, incoming):
        return Collecting(self, incoming)

    def normalized(self, request):
        return NResponse(0x0211)

    def ended(self, association, *, released):
        pass

    def keep(self, received):
        self.got.append(received)
        return self.status(received) if callable(self.status) else self.status
