# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink server: who is let in, what it answers, and what peers of any temper cannot do to the others."""

import contextlib
import ipaddress
import socket
import struct
import threading
import time

import numpy as np
import pytest
from displays import Display, lose_every_packet, until

from appliance.igtl import Capability, Image, Message, Query, Reply, Status, Text, Transform, encode
from appliance.live.igtl_server import DisplayServer

STATUS = {"STATUS": encode(Message(Status(1, "LIVE")))}


def picture(number, size=64):
    return encode(Message(Image(np.zeros((1, size, size), np.uint16), np.eye(4)), "scan", number))


def packets(item):
    return {"TRANSFORM": encode(Message(Transform(np.eye(4)), "probe", item[0])), "IMAGE": picture(*item)}


@pytest.fixture
def serve():
    """Start servers that encode (number, size) and say STATUS every 50 ms; they are closed after the test."""
    servers = []

    def serve(*, send_timeout_s=5.0, max_displays=32, bind="127.0.0.1", **options):
        idle = lambda: (STATUS, 0.05)  # noqa: E731
        server = DisplayServer(bind, 0, packets, idle, send_timeout_s, max_displays, **options)
        servers.append(server)
        return server

    yield serve
    for server in servers:
        server.close({})
        assert not server._thread.is_alive()


@pytest.fixture
def connect():
    with contextlib.ExitStack() as stack:

        def connect(server):
            display = Display(server.port)
            stack.enter_context(display.socket)
            return display

        yield connect


def refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connected:
        return connected.recv(1) == b""


def test_only_allowed_addresses_are_let_in(serve, connect):
    allowed = serve(allow=[ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("127.0.0.0/30")])
    connect(allowed).status("LIVE")
    others = serve(allow=[ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")])
    for _ in range(3):
        assert refused(others)
    assert {"refused_displays": 3, "connections": 0, "displays": []}.items() <= others.status().items()


def test_an_ipv4_address_on_an_ipv6_socket_is_the_same_address(serve, connect):
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    server = serve(allow=[ipaddress.ip_network("127.0.0.1")])
    assert server._refusal("::ffff:127.0.0.1") == ""
    assert server._refusal("127.0.0.1") == ""
    assert server._refusal("fe80::1%eth0") == "its address is not in `allow`"


def test_capability_says_all_that_it_sends_and_understands(serve, connect):
    server = serve(types=("IMAGE", "TRANSFORM", "TDATA", "STATUS", "STRING"))
    display = connect(server)
    display.ask(Message(Query("GET", "CAPABIL")))
    said = set(display.wait_for(lambda m: isinstance(m.content, Capability)).content.types)
    assert {"IMAGE", "TRANSFORM", "TDATA", "STATUS", "STRING", "CAPABILITY"} <= said
    assert {"GET_CAPABIL", "GET_STATUS", "STT_TDATA", "STP_TDATA", "STT_IMAGE", "STP_IMAGE", "STT_TRANSFOR"} <= said


@pytest.mark.parametrize(
    ("query", "ok"),
    [
        (Query("STT", "IMAGE"), True),
        (Query("STP", "TRANSFOR"), True),
        (Query("STT", "QTDATA"), False),
        (Query("STP", "STATUS"), False),  # nobody can turn off the warning that images are old
        (Query("STP", "STRING"), False),
        (Query("STT", ""), False),
    ],
)
def test_start_and_stop_are_answered(serve, connect, query, ok):
    display = connect(serve(types=("IMAGE", "TRANSFORM", "STATUS", "STRING")))
    display.ask(Message(query))
    assert display.wait_for(lambda m: isinstance(m.content, Reply)).content == Reply(query.type, ok)


def test_a_display_stops_and_starts_what_it_gets_and_others_do_not_notice(serve, connect):
    server = serve(types=("IMAGE", "TRANSFORM", "STATUS"))
    display, other = connect(server), connect(server)
    display.ask(Message(Query("STP", "IMAGE")))
    display.wait_for(lambda m: isinstance(m.content, Reply))
    server.put((1, 64))
    assert other.image().time_ns == 1
    seen = []
    display.wait_for(lambda m: seen.append(m.content) or len([c for c in seen if isinstance(c, Status)]) == 3)
    assert any(isinstance(content, Transform) for content in seen)
    assert not any(isinstance(content, Image) for content in seen)
    display.ask(Message(Query("STT", "IMAGE")))
    display.wait_for(lambda m: isinstance(m.content, Reply))
    server.put((2, 64))
    assert display.image().time_ns == 2


def test_a_pace_holds_back_what_comes_too_soon(serve, connect):
    server = serve(types=("TRANSFORM", "STATUS"))
    display = connect(server)
    display.ask(Message(Query("STT", "TRANSFORM"[:8], struct.pack(">i32s", 3_600_000, b""))))
    display.wait_for(lambda m: isinstance(m.content, Reply))
    for number in range(1, 4):
        server.put((number, 4))
        assert display.image().time_ns == number
    later = []
    display.wait_for(lambda m: later.append(m.content) or isinstance(m.content, Status))
    assert not any(isinstance(content, Transform) for content in later)


@pytest.mark.parametrize("kind", ["STATUS", "IMAGE", "TRANSFOR", "IMGMETA", "POINT"])
def test_a_get_of_anything_but_words_brings_the_status_and_no_old_image(serve, connect, kind):
    server = serve()
    reader = connect(server)
    reader.status("LIVE")
    server.put((1, 64))
    reader.image()
    display = connect(server)
    display.ask(Message(Query("GET", kind)))
    seen = []
    display.wait_for(lambda m: seen.append(m.content) or len(seen) == 3)
    assert {type(content) for content in seen} == {Status}


def test_what_displays_send_is_counted_through(serve, connect):
    server = serve()
    display = connect(server)
    big = Message(Image(np.zeros((1, 500, 500), np.uint16), np.eye(4)))
    display.ask(big, Message(Text("hello")), Message(Query("GET", "STATUS")), Message(Query("STT", "NONSENSE")))
    assert display.wait_for(lambda m: isinstance(m.content, Reply)).content == Reply("NONSENSE", False)


@pytest.mark.parametrize(
    "header", [struct.pack(">H12s20sQQQ", 1, b"GET_STATUS", b"", 0, 2**63, 0), b"GET / HTTP/1.1\r\n" * 4]
)
def test_a_peer_that_breaks_the_protocol_is_hung_up_on(serve, connect, header):
    server = serve()
    display = connect(server)
    display.socket.sendall(header)
    with pytest.raises((AssertionError, ConnectionError), match=r"hung up|reset"):
        display.wait_for(lambda m: False)
    assert server.status()["displays"] == []


def test_a_peer_that_vanished_without_a_word_is_found(serve, connect):
    server = serve(send_timeout_s=1.0)
    reader, deaf = connect(server), connect(server)
    deaf.status("LIVE")
    reader.status("LIVE")
    lose_every_packet(deaf.socket)
    until(lambda: len(server.status()["displays"]) == 1)
    server.put((1, 64))
    assert reader.image().time_ns == 1


def test_a_thousand_connections_a_minute_do_no_harm(serve, connect):
    """A thousand at once, some reset, some with half a query; the reader misses nothing."""
    server = serve()
    reader, over = connect(server), threading.Event()
    reader.status("LIVE")
    threads_before = threading.active_count()

    def come_and_go():
        for number in range(1000):
            with socket.create_connection(("127.0.0.1", server.port)) as peer:
                if number % 3 == 0:
                    peer.sendall(encode(Message(Query("GET", "CAPABIL")))[: number % 59])
                if number % 2:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        over.set()

    thread = threading.Thread(target=come_and_go)
    thread.start()
    n_frames = 0
    while not over.is_set():
        n_frames += 1
        server.put((n_frames, 64))
        assert reader.image().time_ns == n_frames
    thread.join()
    until(lambda: len(server.status()["displays"]) == 1)
    status = server.status()
    assert 500 < status["connections"] + status["refused_displays"] <= 1001  # some were gone before they were accepted
    assert threading.active_count() == threads_before
    assert n_frames > 1


def test_one_stalled_display_of_32_costs_the_others_no_frame(serve, connect):
    server = serve(send_timeout_s=60)
    stalled, *readers = [connect(server) for _ in range(32)]
    until(lambda: len(server.status()["displays"]) == 32)
    for number in range(1, 41):
        server.put((number, 512))
        for reader in readers:
            assert reader.image().time_ns == number
    counts = {display["peer"]: display for display in server.status()["displays"]}
    behind = counts.pop("{}:{}".format(*stalled.socket.getsockname()))
    assert behind["dropped"] > 20
    assert {(display["sent"], display["dropped"]) for display in counts.values()} == {(40, 0)}
    assert server.status()["overwritten"] == 0


def test_a_flood_of_queries_delays_nobody_for_long(serve, connect):
    server = serve()
    reader, flooder = connect(server), connect(server)
    reader.status("LIVE")
    flooder.socket.setblocking(False)
    flood = encode(Message(Query("GET", "CAPABIL"))) * 5000
    for number in range(1, 20):
        with contextlib.suppress(BlockingIOError):
            flooder.socket.send(flood)
        server.put((number, 64))
        assert reader.image().time_ns == number


def test_a_message_larger_than_a_turn_comes_whole(serve, connect):
    server = serve()
    displays = [connect(server) for _ in range(3)]
    until(lambda: len(server.status()["displays"]) == 3)
    server.put((1, 2048))
    for display in displays:
        assert display.image().content.array.shape == (1, 2048, 2048)


def test_after_its_thread_ended_it_says_so(serve):
    server = serve()
    server.close({})
    with pytest.raises(RuntimeError, match="openigtlink: its thread has ended; restart the pipeline"):
        server.put((1, 64))


def test_the_farewell_reaches_who_reads(serve, connect):
    server = serve()
    display = connect(server)
    display.status("LIVE")
    time.sleep(0.1)
    server.close({"STATUS": encode(Message(Status(19, "SHUTDOWN")))})
    assert display.status("SHUTDOWN").code == 19


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_our_own_leaves_no_display_connected(connect):
    server = DisplayServer("127.0.0.1", 0, lambda item: 1 / 0, lambda: (STATUS, 0.05), 5.0, 32)
    display = connect(server)
    display.status("LIVE")
    server.put(1)
    with pytest.raises((AssertionError, ConnectionError), match=r"hung up|reset"):
        display.wait_for(lambda m: False)
    until(lambda: not server._thread.is_alive())
    with pytest.raises(RuntimeError, match="its thread has ended"):
        server.put(2)
