# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink codec against captures of the C++ library, pyigtl and hostile bytes."""

import struct
from pathlib import Path

import numpy as np
import pyigtl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PeerError
from appliance.igtl import Capability, Connection, Image, Message, Query, Skipped, Status, Text, Transform, encode

CAPTURES = Path(__file__).parents[3].parent / "shared" / "data" / "igtl_captures"
OBLIQUE = np.array([[0.9, 0.1, 0.0, -80.0], [-0.12, 1.1, 0.3, 20.5], [0.05, -0.2, 4.0, 31.25], [0, 0, 0, 1.0]])


def capture(name):
    path = CAPTURES / f"{name}.igtl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path.read_bytes()


def image(shape=(1, 5, 4), dtype="u2"):
    return Image(np.arange(np.prod(shape), dtype=dtype).reshape(shape), OBLIQUE)


EVERY_KIND = [
    Message(image(), "nearscan", 1_700_000_000_123_456_789),
    Message(image((2, 3, 4, 3), "u1"), "rgb", version=2, metadata={"age_ms": "12.5", "ü": "é"}, message_id=7),
    Message(Status(7, "STALE", "no live data since 812 ms", 812), "nearscan", version=3),
    Message(Text("denoise left out: model failed"), "nearscan"),
    Message(Text("größer"), "nearscan", version=2),
    Message(Transform(OBLIQUE), "probe"),
    Message(Capability(("IMAGE", "STATUS")), "nearscan"),
    Message(Query("GET", "CAPABIL"), "slicer"),
    Message(Query("STT", "TDATA", b"\0\0\0\x32"), "slicer"),
    Message(Query("STP", "TDATA"), "slicer"),
]


def same(a, b):
    for x, y in ((a, b), (b, a)):
        assert type(x.content) is type(y.content)
    assert (a.device_name, a.time_ns, a.version) == (b.device_name, b.time_ns, b.version)
    assert (dict(a.metadata), a.message_id) == (dict(b.metadata), b.message_id)
    if isinstance(a.content, Image):
        np.testing.assert_array_equal(a.content.array, b.content.array)
        np.testing.assert_allclose(a.content.affine, b.content.affine, atol=2e-5)  # float32 on the wire
    elif isinstance(a.content, Transform):
        np.testing.assert_allclose(a.content.matrix, b.content.matrix, rtol=1e-6)
    else:
        assert a.content == b.content


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda m: f"{type(m.content).__name__}-v{m.version}")
def test_what_is_encoded_is_read_back(message):
    connection = Connection()
    (back,) = connection.receive(encode(message))
    same(back, message)
    assert connection.is_between_messages


def test_every_split_gives_the_same_messages():
    wire = b"".join(encode(message) for message in EVERY_KIND)
    for cut in range(len(wire)):
        connection = Connection()
        assert len(connection.receive(wire[:cut]) + connection.receive(wire[cut:])) == len(EVERY_KIND)
    connection = Connection()
    events = [event for i in range(len(wire)) for event in connection.receive(wire[i : i + 1])]
    for event, message in zip(events, EVERY_KIND, strict=True):
        same(event, message)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("ImagerClient", [Image] * 6),
        ("TrackerServer", [Transform] * 20),
        ("StatusServer", [Status] * 2),
        ("StringServer", [Text] * 5),
        ("CapabilityServer", [Capability]),
        ("PolyDataServer", [Skipped]),
        ("TrackingDataServer", [Skipped] * 10),
        ("ImageMetaServer", [Skipped]),
    ],
)
def test_bytes_of_the_cpp_library_are_read(name, kinds):
    connection = Connection()
    assert [
        type(event.content) if isinstance(event, Message) else Skipped for event in connection.receive(capture(name))
    ] == kinds
    assert connection.is_between_messages


@pytest.mark.parametrize("name", ["StatusServer", "StringServer", "TrackerServer", "CapabilityServer", "BindServer"])
def test_bytes_of_the_cpp_library_are_written_again(name):
    wire = capture(name)
    assert b"".join(encode(event) for event in Connection().receive(wire)) == wire


def test_captured_image_agrees_with_an_independent_reader():
    wire = capture("ImagerClient")
    size = struct.unpack(">Q", wire[42:50])[0]
    ours = Connection().receive(wire)[0].content
    theirs = pyigtl.ImageMessage()
    theirs.unpack(pyigtl.ImageMessage.parse_header(wire[:58]), wire[58 : 58 + size])
    np.testing.assert_array_equal(ours.array, theirs.image)
    assert ours.array.std() > 10  # a picture, not zeros
    to_lps = np.diag([-1, -1, 1, 1]) if theirs.world_coordinate_system == "ras" else np.eye(4)
    np.testing.assert_allclose(ours.affine, to_lps @ theirs.ijk_to_world_matrix, atol=1e-4)
    rewritten = encode(Connection().receive(wire)[0])
    assert rewritten[58 + 72 :] == wire[58 + 72 : 58 + size]


@pytest.mark.parametrize("version", [1, 2])
def test_our_image_is_read_by_pyigtl(version):
    sent = Message(
        image((2, 5, 4)), "nearscan", 1_700_000_000_500_000_000, version, {"age_ms": "12"} if version > 1 else {}
    )
    wire = encode(sent)
    header = pyigtl.ImageMessage.parse_header(wire[:58])
    read = pyigtl.ImageMessage()
    read.unpack(header, wire[58:])
    np.testing.assert_array_equal(read.image, sent.content.array)
    assert (read.device_name, read.timestamp, read.world_coordinate_system) == ("nearscan", 1_700_000_000.5, "ras")
    for index in ([0, 0, 0, 1], [3, 4, 1, 1]):
        ras = read.ijk_to_world_matrix @ index
        np.testing.assert_allclose(ras * [-1, -1, 1, 1], OBLIQUE @ index, atol=1e-4)
    assert read.metadata == dict(sent.metadata)


def test_position_is_the_centre_of_the_image_in_ras():
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = 10, 20, 30
    wire = encode(Message(Image(np.zeros((1, 5, 3), np.uint16), affine)))
    numbers = struct.unpack(">12f", wire[58 + 12 : 58 + 60])
    assert numbers[:9] == (-2, 0, 0, 0, -3, 0, 0, 0, 4)
    assert numbers[9:] == (-(10 + 2 * 1), -(20 + 3 * 2), 30)


@pytest.mark.parametrize("big_endian", [False, True])
def test_an_image_of_an_lps_sender_of_either_byte_order(big_endian):
    array = np.arange(6, dtype="<i2").reshape(1, 2, 3)
    body = pyigtl.ImageMessage(array, ijk_to_world_matrix=OBLIQUE, world_coordinate_system="lps").pack()[58:]
    if big_endian:
        body = body[:4] + b"\1" + body[5:72] + array.astype(">i2").tobytes()
    (read,) = Connection().receive(with_body(b"IMAGE", body))
    np.testing.assert_array_equal(read.content.array, array)
    np.testing.assert_allclose(read.content.affine, OBLIQUE, atol=2e-5)


def test_a_wrong_checksum_is_refused():
    wire = bytearray(encode(Message(Text("hello"))))
    wire[-1] ^= 1
    with pytest.raises(PeerError, match=r"igtl: STRING of 9 bytes has checksum 0x.*, its header says 0x.*; look for"):
        Connection().receive(bytes(wire))


@pytest.mark.parametrize("kind", ["IMAGE", "POLYDATA"])
@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 1001])
def test_a_huge_length_is_refused_before_anything_is_kept(kind, size):
    header = struct.pack(">H12s20sQQQ", 1, kind.encode(), b"x", 0, size, 0)
    with pytest.raises(PeerError, match=f"igtl: {kind} announces {size} bytes, at most 1000 are taken; let the peer"):
        Connection(max_body_bytes=1000).receive(header)


def test_unwanted_types_are_counted_through_unread():
    connection = Connection(wanted={"GET_CAPABIL"})
    first, second = connection.receive(encode(Message(image())) + encode(Message(Query("GET", "CAPABIL"))))
    assert first == Skipped("IMAGE", 72 + 40)
    assert second.content == Query("GET", "CAPABIL")


def with_body(kind, body, version=1):
    from appliance.igtl.header import checksum

    return struct.pack(">H12s20sQQQ", version, kind, b"x", 0, len(body), checksum(body)) + body


IMAGE_BODY = encode(Message(image()))[58:]


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"GET / HTTP/1.1\r\n" + bytes(60), "igtl: header version 18245, not 1 to 3; is the peer speaking OpenIGTLink"),
        (with_body(b"\xff\xfe", b""), "igtl: message type .* is not text; is the peer"),
        (with_body(b"STATUS", b"abc"), "igtl: STATUS with a content of 3 bytes"),
        (with_body(b"TRANSFORM", bytes(40)), "igtl: TRANSFORM with a content of 40 bytes"),
        (with_body(b"CAPABILITY", bytes(13)), "igtl: CAPABILITY with a content of 13 bytes"),
        (with_body(b"STRING", b"\0\3\0\x09abc"), "igtl: STRING of 9 bytes runs over its content of 7"),
        (with_body(b"IMAGE", IMAGE_BODY[:-1]), r"igtl: IMAGE of \(1, 5, 4\) uint16 has 39 bytes, not 40"),
        (with_body(b"IMAGE", IMAGE_BODY[:3] + b"\x63" + IMAGE_BODY[4:]), "igtl: IMAGE with scalar type 99"),
        (with_body(b"IMAGE", IMAGE_BODY[:6] + bytes(6) + IMAGE_BODY[12:66] + bytes(6)), "igtl: IMAGE of size"),
        (with_body(b"IMAGE", IMAGE_BODY[:67] + b"\1" + IMAGE_BODY[68:]), "igtl: IMAGE updates a part"),
        (with_body(b"IMAGE", IMAGE_BODY[:12] + b"\x7f\xc0\0\0" + IMAGE_BODY[16:]), "with geometry .*nan"),
        (with_body(b"STRING", b"\0", 2), "igtl: body of 1 bytes cannot hold the extended header"),
        (with_body(b"STRING", struct.pack(">HHII", 12, 2, 2**32 - 1, 0), 2), "do not fit a body of 12"),
        (with_body(b"STRING", struct.pack(">HHIIH", 12, 2, 0, 0, 500), 2), "500 metadata entries do not fit"),
        (
            with_body(b"STRING", struct.pack(">HHIIHHHI", 12, 10, 0, 0, 1, 9, 3, 2**31), 2),
            "metadata entry of 2147483657 bytes runs over its end",
        ),
    ],
)
def test_malformed_messages_say_what_is_wrong(wire, text):
    with pytest.raises(PeerError, match=text):
        Connection().receive(wire)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_nothing_but_peer_error(data):
    wire = bytearray(encode(data.draw(st.sampled_from(EVERY_KIND))))
    body = wire[58:]
    for _ in range(data.draw(st.integers(1, 4))):
        if body:
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = bytes(body[: data.draw(st.integers(0, len(body)))])
    kind, version = wire[2:14].rstrip(b"\0"), data.draw(st.integers(1, 3))
    try:
        events = Connection(max_body_bytes=1 << 20).receive(with_body(bytes(kind), body, version))
    except PeerError:
        return
    assert len(events) == 1


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_raises_nothing_but_peer_error(noise):
    connection = Connection(max_body_bytes=1 << 20)
    try:
        connection.receive(noise)
    except PeerError as error:
        assert str(error).startswith("igtl: ")


@pytest.mark.parametrize("array", [np.zeros((1, 2, 2), np.complex64), np.zeros((2, 2)), np.zeros((1, 1, 70000), "u1")])
def test_an_image_that_openigtlink_cannot_hold_is_our_mistake(array):
    with pytest.raises(ValueError, match="encode: "):
        encode(Message(Image(array, np.eye(4))))
