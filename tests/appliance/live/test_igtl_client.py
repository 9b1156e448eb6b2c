# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink client over loopback: servers that come, go, fall silent and vanish."""

import contextlib
import itertools
import socket
import struct
import threading
import time

import numpy as np
import pytest
from displays import PATIENCE_S, lose_every_packet

from appliance.igtl import Connection, Image, Message, Query, Status, Text, Transform, encode
from appliance.live.igtl_client import Client

HELLO = Message(Text("hello"), "peer", 1_700_000_000_000_000_000)


class Peer:
    """A server of one connection at a time."""

    def __init__(self, port=0):
        self.listener = socket.create_server(("127.0.0.1", port))
        self.listener.settimeout(PATIENCE_S)
        self.port = self.listener.getsockname()[1]

    def accept(self):
        connected, _ = self.listener.accept()
        connected.settimeout(PATIENCE_S)
        return connected


class Heard:
    """What the client called back with."""

    def __init__(self):
        self.messages, self.states = [], []
        self.changed = threading.Condition()

    def message(self, message, received_ns):
        with self.changed:
            self.messages.append((message, received_ns))
            self.changed.notify_all()

    def state(self, text):
        with self.changed:
            self.states.append(text)
            self.changed.notify_all()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S), (self.messages, self.states)


@pytest.fixture
def connect():
    """Start clients; they are closed after the test."""
    with contextlib.ExitStack() as stack:

        def connect(port, **options):
            heard = Heard()
            client = Client("127.0.0.1", port, on_message=heard.message, on_state=heard.state, **options)
            client.start()
            stack.callback(client.close)
            return client, heard

        yield connect


@pytest.fixture
def peer():
    peer = Peer()
    with peer.listener:
        yield peer


def test_messages_come_with_the_time_of_their_last_byte(connect, peer):
    image = Message(Image(np.arange(2_000_000, dtype=np.uint16).reshape(2, 1000, 1000), np.eye(4)), "probe")
    client, heard = connect(peer.port, queries=[Message(Query("STT", "TDATA", b"\0\0\0\x32"), "us")])
    with peer.accept() as connected:
        (asked,) = Connection().receive(connected.recv(4096))
        assert asked.content == Query("STT", "TDATA", b"\0\0\0\x32")
        wire = encode(image)
        connected.sendall(wire[:-1])
        time.sleep(0.3)
        before_ns = time.monotonic_ns()
        connected.sendall(wire[-1:] + encode(HELLO))
        heard.wait(lambda: len(heard.messages) == 2)
    (first, first_ns), (second, second_ns) = heard.messages
    np.testing.assert_array_equal(first.content.array, image.content.array)
    assert second == HELLO
    assert before_ns <= first_ns <= second_ns <= time.monotonic_ns()
    assert {"connections": 1, "messages": 2}.items() <= client.status().items()


def test_what_is_not_wanted_is_counted_and_not_kept(connect, peer):
    client, heard = connect(peer.port, wanted={"STRING"})
    with peer.accept() as connected:
        connected.sendall(encode(Message(Transform(np.eye(4)))) + encode(HELLO))
        heard.wait(lambda: heard.messages)
    assert [message for message, _ in heard.messages] == [HELLO]
    assert client.status()["skipped_messages"] == 1


def test_it_connects_again_for_ever_and_says_each_thing_once(connect):
    peer = Peer()
    client, heard = connect(peer.port)
    for number in range(1, 4):
        with peer.listener, peer.accept() as connected:
            connected.sendall(encode(HELLO))
            heard.wait(lambda number=number: len(heard.messages) == number)
        time.sleep(1)  # several attempts fail
        peer = Peer(peer.port)
    with peer.listener:
        heard.wait(lambda: heard.states.count("connected") == 4)
    named = [state.replace(str(peer.port), "PORT") for state in heard.states]
    lost = "lost: 127.0.0.1:PORT: the peer hung up; connecting again"
    refused = "lost: 127.0.0.1:PORT: [Errno 111] Connection refused; connecting again"
    assert named[0] == "connected"
    assert named.count(refused) == 3
    assert all(text in (lost, refused, "connected") or "reset by peer" in text for text in named)
    assert all(a != b for a, b in itertools.pairwise(named))
    assert client.status()["connections"] == 4


def test_a_peer_without_a_listener_is_tried_until_it_is_there(connect, free_port):
    client, heard = connect(free_port)
    heard.wait(lambda: heard.states)
    time.sleep(0.5)
    assert len(heard.states) == 1, "said once, not at each attempt"
    peer = Peer(free_port)
    with peer.listener, peer.accept():
        heard.wait(lambda: heard.states[-1] == "connected")
        assert client.status()["state"] == "connected"


def test_a_name_that_is_none_is_said_and_does_not_end_it():
    heard = Heard()
    client = Client("x" * 80 + ".invalid", 1, on_message=heard.message, on_state=heard.state)
    client.start()
    heard.wait(lambda: heard.states)
    assert heard.states[0].startswith("lost: xxxx")
    assert client._thread.is_alive()
    client.close()


def test_silence_is_said_and_ends_with_the_next_message(connect, peer):
    _, heard = connect(peer.port, silence_s=0.5)
    with peer.accept() as connected:
        heard.wait(lambda: len(heard.states) == 2)
        connected.sendall(encode(HELLO))
        heard.wait(lambda: len(heard.states) == 3)
    silent = f"silent: 127.0.0.1:{peer.port}: no whole message for 0.5 s; look at the peer"
    assert heard.states[:3] == ["connected", silent, "connected"]


def test_a_message_that_trickles_is_silence_and_is_given_up(connect, peer):
    client, heard = connect(peer.port, silence_s=0.2)
    with peer.accept() as connected:
        wire = encode(Message(Image(np.zeros((1, 64, 64), np.uint8), np.eye(4))))
        with contextlib.suppress(OSError):
            for i in range(len(wire)):
                connected.sendall(wire[i : i + 1])
                time.sleep(0.02)
                if client.status()["connections"] > 1:
                    break
    assert heard.states[1].startswith("silent: ")
    assert heard.states[2].startswith(f"lost: 127.0.0.1:{peer.port}: silent for ")
    assert not heard.messages


def test_a_peer_that_vanished_without_a_word_is_found(connect, peer):
    client, heard = connect(peer.port, silence_s=100)
    with peer.accept() as connected:
        connected.sendall(encode(HELLO))
        heard.wait(lambda: heard.messages)
        lose_every_packet(connected)
        heard.wait(lambda: len(heard.states) > 1)
        assert heard.states[1].endswith("[Errno 110] Connection timed out; connecting again")
        with peer.accept() as again:
            again.sendall(encode(HELLO))
            heard.wait(lambda: len(heard.messages) == 2)
    assert client.status()["connections"] == 2


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(58), "igtl: header version "),
        (encode(HELLO)[:-1] + b"!", "igtl: STRING of 9 bytes has checksum "),
        (struct.pack(">H12s20sQQQ", 1, b"IMAGE", b"", 0, 2**63, 0), "igtl: IMAGE announces 9223372036854775808 bytes"),
    ],
)
def test_a_peer_that_breaks_the_protocol_is_hung_up_on_and_tried_again(connect, peer, wire, text):
    _, heard = connect(peer.port, max_body_bytes=1 << 20)
    with peer.accept() as connected:
        connected.sendall(wire)
        heard.wait(lambda: len(heard.states) == 2)
        assert heard.states[1].startswith(f"lost: 127.0.0.1:{peer.port}: {text}")
        with peer.accept() as again:
            again.sendall(encode(HELLO))
            heard.wait(lambda: heard.messages)


def test_a_good_message_before_a_bad_one_is_not_lost(connect, peer):
    _, heard = connect(peer.port)
    with peer.accept() as connected:
        connected.sendall(encode(HELLO) + b"not OpenIGTLink at all" + bytes(58))
        heard.wait(lambda: len(heard.states) == 2)
    assert [message for message, _ in heard.messages] == [HELLO]
    assert "igtl: header version " in heard.states[1]


def test_who_hangs_up_at_once_is_not_called_in_a_hurry(connect, peer):
    connect(peer.port)
    end, n_accepted = time.monotonic() + 3, 0
    while time.monotonic() < end:
        peer.accept().close()
        n_accepted += 1
    assert 2 <= n_accepted <= 7, "0.2, 0.4, 0.8, 1.6 s between them"


def test_close_ends_it_in_every_state(connect, peer, free_port):
    for port in (peer.port, free_port):
        client, _ = connect(port)
        time.sleep(0.1)
        client.close()
        assert not client._thread.is_alive()


def test_nothing_is_lost_while_the_callback_is_slow_and_no_queue_grows(peer):
    seen = []

    def slow(message, _):
        seen.append(message.content.code)
        time.sleep(0.001)

    client = Client("127.0.0.1", peer.port, on_message=slow, on_state=lambda text: None)
    client.start()
    with peer.accept() as connected:
        for code in range(1000):
            connected.sendall(encode(Message(Status(code))))
        end = time.monotonic() + PATIENCE_S
        while len(seen) < 1000 and time.monotonic() < end:
            time.sleep(0.01)
    client.close()
    assert seen == list(range(1000))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_our_own_is_not_silent(peer):
    heard = Heard()
    client = Client("127.0.0.1", peer.port, on_message=lambda *_: 1 / 0, on_state=heard.state)
    client.start()
    with peer.accept() as connected:
        connected.sendall(encode(HELLO))
        heard.wait(lambda: len(heard.states) == 2)
    assert client.status()["state"] == "ended: an error of our own; restart the pipeline"
    client.close()
