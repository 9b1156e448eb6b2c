# SPDX-License-Identifier: Apache-2.0
"""A display that reads what an OpenIGTLink server sends, for tests over loopback; and a peer that goes deaf."""

import ctypes
import socket
import struct
import time

import numpy as np

from appliance.frames import Frame, Scan
from appliance.igtl import Connection, Image, Status, encode

PATIENCE_S = 20
AFFINE = np.array([[0.9, 0.1, 0.0, -80.0], [-0.12, 1.1, 0.3, 20.5], [0.05, -0.2, 4.0, 31.25], [0, 0, 0, 1.0]])


class Display:
    """A display that reads."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.connection = Connection()
        self.seen = []

    def wait_for(self, wanted):
        """Return the first message not yet waited for that `wanted` takes."""
        end = time.monotonic() + PATIENCE_S
        while True:
            assert time.monotonic() < end, "it never came"
            while self.seen:
                message = self.seen.pop(0)
                if wanted(message):
                    return message
            data = self.socket.recv(1 << 20)
            assert data, "the server hung up"
            self.seen += self.connection.receive(data)

    def status(self, name):
        return self.wait_for(lambda m: isinstance(m.content, Status) and m.content.name == name).content

    def ask(self, *messages):
        self.socket.sendall(b"".join(map(encode, messages)))

    def image(self):
        return self.wait_for(lambda m: isinstance(m.content, Image))


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def lose_every_packet(sock):
    """From now on `sock` hears nothing and so acknowledges nothing: what a half-open peer looks like from afar."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # one BPF instruction: return 0 bytes
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HL", 1, ctypes.addressof(drop_all)))  # SO_ATTACH_FILTER


def scan(scan_id="s1", modality="MR"):
    return Scan(scan_id, modality, ("y", "x"), (6, 5), "float32", time.time_ns())


def frame(sequence=0, array=None, scan_id="s1", affine=AFFINE, **kwargs):
    array = np.arange(30, dtype=np.float32).reshape(6, 5) if array is None else array
    return Frame(
        scan_id=scan_id,
        sequence=sequence,
        array=array,
        axes=("z", "y", "x")[-array.ndim :],
        affine=affine,
        acquired_ns=1_700_000_000_000_000_000 + sequence,
        received_ns=time.monotonic_ns(),
        **kwargs,
    )
