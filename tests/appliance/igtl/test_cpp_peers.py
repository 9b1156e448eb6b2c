# SPDX-License-Identifier: Apache-2.0
"""The C++ library of OpenIGTLink, by Debian's example programs, in both directions and for all that they speak."""

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from displays import PATIENCE_S, frame, scan, until
from fuzzing import fuzz_igtl

from appliance.context import Context
from appliance.frames import Tracking
from appliance.igtl import Bind, Connection, Image, Message, Pace, Query, Text, TrackingData, Transform, encode
from appliance.igtl.messages import type_of
from appliance.igtl.queries import start
from appliance.live.igtl_client import Client
from operators.sinks.openigtlink import Settings, make

pytestmark = pytest.mark.peer
EXAMPLES = Path("/usr/share/doc/openigtlink-examples/examples")
INCLUDE = Path("/usr/include/openigtlink")
CAPTURES = Path(__file__).parents[3].parent / "shared" / "data" / "igtl_captures"
OURS = {type_of(m.content): m for m in reversed(fuzz_igtl.EVERY_KIND) if m.version == 1}


@pytest.fixture
def build(tmp_path):
    """Compile one of the examples."""

    def build(name):
        sources = list(EXAMPLES.glob(f"*/{name}.cxx"))
        if not sources or not INCLUDE.exists():
            pytest.skip(f"{EXAMPLES} or {INCLUDE} is absent (Debian: openigtlink-examples, libopenigtlink-dev)")
        program = tmp_path / name
        command = ["g++", "-w", sources[0], f"-I{INCLUDE}", "-lOpenIGTLink", "-lpthread", "-o", program]
        subprocess.run(command, check=True)
        return program

    return build


class Program:
    """A running example, what it says being written to a file."""

    def __init__(self, program, *arguments):
        self.said = program.with_suffix(".txt")
        line = [shutil.which("stdbuf"), "-o0", program, *map(str, arguments)]
        with self.said.open("wb") as file:
            self._process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT)

    def says(self, *texts):
        """Wait until it has said all of these."""
        until(lambda: all(text in self.said.read_text(errors="replace") for text in texts))

    def close(self):
        self._process.kill()
        self._process.wait(PATIENCE_S)


SERVERS = [
    ("TrackerServer", ["20"], None, "TRANSFORM"),
    ("TrackerServer2", ["20"], None, "POSITION"),
    ("TrackingDataServer", [], start("TDATA", Pace(20, "Patient")), "TDATA"),
    ("QuaternionTrackingDataServer", [], start("QTDATA", Pace(20, "Patient")), "QTDATA"),
    ("PointServer", [], None, "POINT"),
    ("TrajectoryServer", [], None, "TRAJ"),
    ("PolyDataServer", [], Query("GET", "POLYDATA"), "POLYDATA"),
    ("ImageMetaServer", [], Query("GET", "IMGMETA"), "IMGMETA"),
    ("LabelMetaServer", [], Query("GET", "LBMETA"), "LBMETA"),
    ("CapabilityServer", [], None, "CAPABILITY"),
    ("StatusServer", [], None, "STATUS"),
    ("StringServer", ["20"], None, "STRING"),
    ("ImagerServer", ["20", EXAMPLES / "Imager" / "img"], None, "IMAGE"),
]


@pytest.mark.parametrize(("name", "arguments", "query", "kind"), SERVERS, ids=[server[0] for server in SERVERS])
def test_our_client_reads_their_server(build, free_port, name, arguments, query, kind):
    program, got = build(name), []
    queries = [] if query is None else [Message(query, "lab")]
    client = Client(
        *("127.0.0.1", free_port),
        on_message=lambda message, _: got.append(message),
        on_state=lambda state: None,
        queries=queries,
    )
    client.start()  # before there is a server: it is found as soon as it listens
    with contextlib.closing(Program(program, free_port, *arguments)), contextlib.closing(client):
        until(lambda: got)
    assert type_of(got[0].content) == kind
    captured = CAPTURES / f"{name}.igtl"
    if captured.exists() and kind != "IMGMETA":  # those hold the time of day
        (expected, *_) = Connection().receive(captured.read_bytes())
        expected = dataclasses.replace(expected, device_name=got[0].device_name)
        assert encode(dataclasses.replace(got[0], time_ns=0)) == encode(dataclasses.replace(expected, time_ns=0))


def test_their_images_have_the_pixels_of_their_files(build, free_port):
    folder, got = EXAMPLES / "Imager" / "img", []
    client = Client(
        "127.0.0.1", free_port, on_message=lambda message, _: got.append(message.content), on_state=lambda state: None
    )
    client.start()
    program = build("ImagerServer")
    with contextlib.closing(Program(program, free_port, "20", folder)), contextlib.closing(client):
        until(lambda: len(got) > 4)
    files = {path.read_bytes() for path in folder.glob("*.raw")}
    assert {content.array.tobytes() for content in got} <= files


@contextlib.contextmanager
def serving(build, name, *arguments):
    """Run one of their clients, connected to a plain socket of ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        port = listener.getsockname()[1]
        with contextlib.closing(Program(build(name), "127.0.0.1", port, *arguments)) as program:
            connected, _ = listener.accept()
            with connected:
                connected.settimeout(PATIENCE_S)
                yield program, connected


def receive(connected, n_messages):
    connection, messages = Connection(), []
    while len(messages) < n_messages:
        messages += connection.receive(connected.recv(65536))
    return messages


@pytest.mark.parametrize(
    ("name", "arguments", "kind"),
    [
        ("TrackerClient", ["20"], "TRANSFORM"),
        ("TrackerClient2", ["20"], "POSITION"),
        ("PointClient", [], "POINT"),
        ("TrajectoryClient", [], "TRAJ"),
        ("BindClient", ["20"], "BIND"),
        ("StringClient", ["20"], "STRING"),
        ("StatusClient", [], "STATUS"),
        ("CapabilityClient", [], "CAPABILITY"),
        ("ImagerClient2", ["20", EXAMPLES / "Imager" / "img"], "IMAGE"),
    ],
)
def test_our_parser_reads_their_client_and_writes_the_same_bytes(build, name, arguments, kind):
    wire, connection, messages = b"", Connection(), []
    with serving(build, name, *arguments) as (_, connected):
        while not messages:
            wire += (data := connected.recv(65536))
            assert data
            messages += connection.receive(data)
    assert type_of(messages[0].content) == kind
    if kind != "IMAGE":  # they write big-endian, we little-endian
        again = encode(dataclasses.replace(messages[0], time_ns=0))
        assert again[:34] + again[42:] == wire[:34] + wire[42 : len(again)]  # all but the time
    if kind == "BIND":
        assert [(name, type(content)) for name, content in messages[0].content.children] == [
            ("StringMessage", Text),
            ("Tracker", Transform),
        ]


def test_their_receiver_reads_all_that_we_send(build):
    kinds = ("IMAGE", "TRANSFORM", "STRING", "CAPABILITY", "POINT", "POSITION", "QTDATA", "TRAJ")
    transform = OURS["TRANSFORM"].content
    tracking = dataclasses.replace(
        OURS["TRANSFORM"], content=TrackingData((fuzz_igtl.Tool("Needle", transform.matrix),))
    )
    status = Message(fuzz_igtl.Status(7, "STALE", "no live data since 812 ms", 812), "nearscan")
    matrix = "0, -1, 0, 12.5\n1, 0, 0, -3\n0, 0, 1, 99\n0, 0, 0, 1\n"
    with serving(build, "ReceiveClient") as (program, connected):
        connected.sendall(b"".join(encode(message) for message in (*(OURS[k] for k in kinds), tracking, status)))
        program.says(  # only what passed the library's own CRC check
            "Time stamp: 1700000000.12345678",
            "Dimensions            : (4, 5, 1)",
            f"data type.\n=============\n{matrix}",
            "String: denoise left out: model failed",
            "Typename #0: IMAGE\nTypename #1: STATUS",
            "Position  : ( 1.000000, 2.000000, 3.000000 )\n Radius    : 0.500000\n Owner     : IMAGE_0",
            "quaternion = (0.000000, 0.000000, 0.600000, 0.800000)",
            "Position   : 1, 2, 3\n Quaternion : 0, 0, 0.6, 0.8",
            "Entry Pt  : ( 1.000000, 2.000000, 3.000000 )\n Target Pt : ( 4.000000, 5.000000, 6.000000 )",
            f"Name       : Needle\n Type       : 2\n Matrix : \n=============\n{matrix}",
            "Code      : 7\n SubCode   : 812\n Error Name: STALE\n Status    : no live data since 812 ms",
        )


@pytest.mark.parametrize(
    ("name", "query", "kind", "texts"),
    [
        (
            "PolyDataClient",
            Query("GET", "POLYDATA"),
            "POLYDATA",
            ["point[4] = (12, 13, 14)", "cell[1] = (1, 1, 2, 3)", "Type = CELL_RGBA\n  data[0] = (0, 1, 2, 3)"],
        ),
        (
            "ImageMetaClient",
            Query("GET", "IMGMETA"),
            "IMGMETA",
            ["PatientName: A^B", "TimeStamp  : 1700000000.123457\n Size       : ( 512, 512, 64)\n ScalarType : 5"],
        ),
        (
            "LabelMetaClient",
            Query("GET", "LBMETA"),
            "LBMETA",
            ["Label      : 1\n RGBA       : ( 255, 0, 0, 255 )\n Size       : ( 6, 5, 1)\n Owner      : IMAGE_0"],
        ),
    ],
)
def test_their_clients_ask_and_read_our_answer(build, name, query, kind, texts):
    with serving(build, name) as (program, connected):
        (asked,) = receive(connected, 1)
        assert asked.content == query
        connected.sendall(encode(OURS[kind]))
        program.says(*texts)


def test_their_receiver_reads_several_messages_bound_in_one(build, free_port):
    bound = Message(Bind((("words", Text("abc")), ("probe", OURS["TRANSFORM"].content))), "both")
    with contextlib.closing(Program(build("ReceiveServer"), free_port)) as program:
        connected = connect_when_it_listens(free_port)
        with connected:
            connected.sendall(encode(bound))
            program.says(
                "Message name: words\nEncoding: 3; String: abc", "Message name: probe\n=============\n0, -1, 0, 12.5"
            )


def connect_when_it_listens(port):
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize("name", ["TrackingDataClient", "QuaternionTrackingDataClient"])
def test_their_tracking_client_starts_and_stops_what_our_sink_sends(build, tmp_path, name):
    sink = make(Settings(port=0, keepalive_s=60, stale_ms=60_000), Context("p", tmp_path, tmp_path))
    with contextlib.closing(sink):
        program = Program(build(name), "127.0.0.1", sink.status()["port"], "20")
        with contextlib.closing(program):
            sink.begin(scan(modality="US"))
            if name == "QuaternionTrackingDataClient":  # refused, and the rest is not disturbed by it
                program.says("Receiving : RTS_QTDATA")
            else:
                program.says("Receiving : RTS_TDATA")
            tools = {"Stylus": OURS["TRANSFORM"].content.matrix * np.outer([-1, -1, 1, 1], [-1, -1, 1, 1])}
            for number in range(1, 12):  # they stop after ten messages
                sink.frame(frame(number, tracking=Tracking(np.eye(4), tools=tools)))
                until(lambda number=number: sink.status()["displays"][0]["sent"] == number)
            if name == "TrackingDataClient":
                program.says(
                    "Name       : Stylus\n Type       : 2\n Matrix : \n=============\n0, -1, 0, 12.5\n1, 0, 0, -3"
                )
            program.says("Receiving : IMAGE", "Receiving : TRANSFORM", "Sending STP_")


def test_a_part_of_an_image_is_one_to_them_too(build):
    part = fuzz_igtl.ImagePart(np.zeros((1, 2, 3), np.int16), np.eye(4), (1, 2, 3), (4, 4, 4))
    with serving(build, "ReceiveClient") as (program, connected):
        connected.sendall(encode(Message(part)) + encode(Message(Image(np.zeros((1, 2, 3), np.int16), np.eye(4)))))
        program.says(
            "Sub-Volume dimensions : (3, 2, 1)\nSub-Volume offset     : (1, 2, 3)", "Dimensions            : (3, 2, 1)"
        )
