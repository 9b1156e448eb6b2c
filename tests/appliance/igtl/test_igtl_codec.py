# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink codec against captures of the C++ library, pyigtl and its own inverse."""

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pyigtl
import pytest
from fuzzing import fuzz_igtl
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PeerError
from appliance.igtl import (
    Attribute,
    Bind,
    Cells,
    Connection,
    Image,
    ImagePart,
    Message,
    Pace,
    PolyData,
    Position,
    Query,
    Sensor,
    Skipped,
    Status,
    Text,
    Transform,
    encode,
    paste,
)
from appliance.igtl.header import checksum
from appliance.igtl.messages import type_of
from appliance.igtl.queries import read_pace, start

CAPTURES = Path(__file__).parents[3].parent / "shared" / "data" / "igtl_captures"
EVERY_KIND, OBLIQUE = fuzz_igtl.EVERY_KIND, fuzz_igtl.OBLIQUE


def capture(name):
    path = CAPTURES / f"{name}.igtl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path.read_bytes()


def image(shape=(1, 5, 4), dtype="u2"):
    return Image(np.arange(np.prod(shape), dtype=dtype).reshape(shape), OBLIQUE)


def same(a, b):
    """Assert that two messages, contents or parts of them say the same, numbers to float32's precision."""
    assert type(a) is type(b)
    if dataclasses.is_dataclass(a):
        for name in [f.name for f in dataclasses.fields(a)]:
            same(getattr(a, name), getattr(b, name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-5)
    else:
        assert a == b


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda m: f"{type_of(m.content)}-v{m.version}-{m.device_name}")
def test_what_is_encoded_is_read_back_whole_in_two_in_single_bytes_and_never_early(message):
    wire = encode(message)
    for cut in range(1, len(wire)):
        connection = Connection()
        assert connection.receive(wire[:cut]) == []
        assert not connection.is_between_messages
        (back,) = connection.receive(wire[cut:])
        same(back, message)
    connection, back = Connection(), []
    for i in range(len(wire)):
        back += connection.receive(wire[i : i + 1])
    back += Connection().receive(wire + wire)
    assert len(back) == 3
    for one in back:
        same(one, message)
        assert encode(one) == wire
    assert connection.is_between_messages


def test_every_split_gives_the_same_messages():
    wire = b"".join(encode(message) for message in EVERY_KIND)
    for cut in range(len(wire)):
        connection = Connection()
        assert len(connection.receive(wire[:cut]) + connection.receive(wire[cut:])) == len(EVERY_KIND)


def test_bytes_read_straight_into_the_room_give_the_same_messages():
    wire, connection, events = b"".join(map(encode, EVERY_KIND)) * 20, Connection(), []
    big = encode(Message(Image(np.arange(300_000, dtype="<u4").reshape(3, 100, 1000), np.eye(4))))
    rest = memoryview(wire + big + wire)
    while rest:
        room = connection.room()
        n_bytes = min(len(room), len(rest))
        room[:n_bytes] = rest[:n_bytes]
        rest = rest[n_bytes:]
        events += connection.received(n_bytes)
    assert b"".join(map(encode, events)) == wire + big + wire


def test_good_messages_before_a_bad_one_are_not_lost():
    good, bad = encode(Message(Text("good"))), bytearray(encode(Message(Text("bad"))))
    bad[-1] ^= 1
    connection = Connection()
    (event,) = connection.receive(good + bytes(bad) + good)
    assert event.content == Text("good")
    for data in (b"", good):
        with pytest.raises(PeerError, match="has checksum"):
            connection.receive(data)
    with pytest.raises(PeerError, match="has checksum"):
        connection.received(0)


def test_what_is_read_cannot_be_written_to():
    for message in (Message(image()), Message(Image(np.zeros((1, 300, 300), "f4"), np.eye(4)))):
        (back,) = Connection().receive(encode(message))
        with pytest.raises(ValueError, match="read-only"):
            back.content.array[:] = 0


CAPTURED = {
    "BindServer": ["TRANSFORM"] * 3,
    "CapabilityServer": ["CAPABILITY"],
    "ImageDatabaseServer": ["IMGMETA"],
    "ImageMetaServer": ["IMGMETA"],
    "ImagerClient": ["IMAGE"] * 6,
    "LabelMetaServer": ["LBMETA"],
    "PointServer": ["POINT"],
    "PolyDataServer": ["POLYDATA"],
    "QuaternionTrackingDataServer": ["QTDATA"] * 10,
    "StatusServer": ["STATUS"] * 2,
    "StringServer": ["STRING"] * 5,
    "TrackerClient": ["TRANSFORM"] * 10,
    "TrackerServer": ["TRANSFORM"] * 20,
    "TrackingDataServer": ["TDATA"] * 10,
}


def test_every_capture_has_a_test():
    if CAPTURES.exists():
        assert {path.stem for path in CAPTURES.glob("*.igtl")} == CAPTURED.keys()


@pytest.mark.parametrize("name", CAPTURED)
def test_bytes_of_the_cpp_library_are_read_and_written_again(name):
    wire, connection = capture(name), Connection()
    messages = connection.receive(wire)
    assert [type_of(message.content) for message in messages] == CAPTURED[name]
    assert connection.is_between_messages
    if name == "ImagerClient":  # it says big-endian, which is one for bytes; we say little-endian
        assert [len(encode(message)) for message in messages] == [len(wire) // 6] * 6
        return
    again = b"".join(map(encode, messages))
    # Time stamps of other senders have a resolution of 0.23 ns; nanoseconds are what we keep.
    rounded = {"TrackerClient": range(41, len(wire), 106), "ImageMetaServer": META, "ImageDatabaseServer": META}
    different = {at for at in range(len(wire)) if wire[at] != again[at]}
    assert len(again) == len(wire)
    assert different <= set(rounded.get(name, ()))


META = [*range(50, 58), *range(58 + 251, 838, 260)]  # the CRC, and the last byte of each scan time


def only(name):
    return Connection().receive(capture(name))[0].content


def test_what_the_cpp_examples_say():
    """Against the constants in the examples' own source."""
    point = only("PointServer").points[2]
    assert (point.name, point.group, point.owner) == ("POINT_2", "GROUP_0", "IMAGE_0")
    assert (point.position, point.radius, point.rgba) == ((70, 80, 90), 75, (0, 0, 255, 255))
    infos = only("ImageMetaServer").images
    assert [one.modality for one in infos] == ["CT", "MRI", "PET"]
    assert (infos[1].patient_name, infos[1].size) == ("PATIENT_1", (256, 128, 32))
    assert "PATIENT" not in repr(infos)
    label = only("LabelMetaServer").labels[2]
    assert (label.name, label.label, label.rgba, label.size) == (
        *("LABEL_DESCRIPTION_2", 3, (0, 0, 255, 255)),
        (256, 256, 32),
    )
    cube = only("PolyDataServer")
    assert cube.points.tolist()[6] == [1, 1, 1]
    assert cube.polygons.flat.reshape(6, 5).tolist()[5] == [4, 3, 0, 4, 7]
    assert (cube.attributes[0].name, cube.attributes[0].values.ravel().tolist()) == ("attr", list(range(8)))
    tools = only("TrackingDataServer").tools
    assert [(tool.name, tool.kind) for tool in tools] == [("Channel 0", 1), ("Channel 1", 2), ("Channel 2", 4)]
    quaternion = only("QuaternionTrackingDataServer").tools[1]
    np.testing.assert_allclose(quaternion.position, [50, 0, 50])
    np.testing.assert_allclose(quaternion.quaternion, [0, 0.6666666666, 0.577350269189626, 0], rtol=1e-6)


def test_a_part_of_an_image_goes_where_it_belongs():
    whole = Message(image((4, 5, 6), "i2"), "volume")
    part = np.full((2, 1, 3), -7, "i2")
    wire = encode(whole) + encode(Message(ImagePart(part, OBLIQUE, (3, 4, 1), (6, 5, 4)), "volume"))
    before, update = (message.content for message in Connection().receive(wire))
    pasted = paste(update, before)
    expected = whole.content.array.copy()
    expected[1:3, 4:5, 3:6] = -7
    np.testing.assert_array_equal(pasted.array, expected)
    np.testing.assert_array_equal(before.array, whole.content.array)
    np.testing.assert_allclose(pasted.affine, OBLIQUE, atol=2e-5)
    for other in (image((4, 5, 7), "i2"), image((4, 5, 6), "u2"), Image(before.array, before.affine + 1)):
        with pytest.raises(PeerError, match=r"igtl: a part of an image of \(6, 5, 4\) int16 does not belong to one of"):
            paste(update, other)


def test_queries_with_a_pace():
    query = start("TDATA", Pace(50, "Reference"))
    assert read_pace(query) == Pace(50, "Reference")
    assert query.body == struct.pack(">i32s", 50, b"Reference")
    assert read_pace(Query("STT", "TDATA")) == Pace()
    assert read_pace(Query("STT", "TDATA", b"\xff" * 36)).resolution_ms == 0


def with_body(kind, body, version=1):
    return struct.pack(">H12s20sQQQ", version, kind, b"x", 0, len(body), checksum(body)) + body


@pytest.mark.parametrize(
    ("body", "quaternion"),
    [
        (struct.pack(">3f", 1, 2, 3), (0, 0, 0, 1)),
        (struct.pack(">6f", 1, 2, 3, 0, 0, 0.6), (0, 0, 0.6, 0.8)),
        (struct.pack(">7f", 1, 2, 3, 0, 0, 0.6, 0.8), (0, 0, 0.6, 0.8)),
    ],
)
def test_positions_with_and_without_orientation(body, quaternion):
    (back,) = Connection().receive(with_body(b"POSITION", body))
    same(back.content, Position(np.array([1.0, 2, 3]), np.array(quaternion, float)))


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


def test_unwanted_types_are_counted_through_unread():
    connection = Connection(wanted={"GET_CAPABIL"})
    first, second = connection.receive(encode(Message(image())) + encode(Message(Query("GET", "CAPABIL"))))
    assert first == Skipped("IMAGE", 72 + 40)
    assert second.content == Query("GET", "CAPABIL")


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6),
    st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6),
    st.lists(st.tuples(names, st.integers(0, 3)), max_size=3),
)
def test_any_surface_is_read_back(points, lists, heads):
    lists = [[i % len(points) for i in one] for one in lists]
    cells = fuzz_igtl.cells(*lists)
    attributes = tuple(Attribute(name, np.ones((len(points), n), np.float32)) for name, n in heads)
    data = PolyData(np.array(points, np.float32), lines=cells, strips=cells, attributes=attributes)
    (back,) = Connection().receive(encode(Message(data)))
    same(back.content, data)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)),
    st.lists(st.floats(-500, 500, width=32), min_size=12, max_size=12),
    st.dictionaries(names, st.text(st.characters(exclude_categories=["Cs"]))),
    st.integers(0, (1 << 32) * 10**9 - 10),
    names,
)
def test_any_image_is_read_back(dtype, shape, geometry, metadata, time_ns, name):
    affine = np.vstack([np.reshape(geometry, (3, 4)), [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    array = array[..., 0] if shape[3] == 1 else array
    (back,) = Connection().receive(encode(Message(Image(array, affine), name, time_ns, 2, metadata)))
    np.testing.assert_array_equal(back.content.array, array)
    assert back.content.array.dtype == array.dtype
    np.testing.assert_allclose(back.content.affine, affine, atol=1e-2)  # the corner, from the centre in float32
    assert (back.device_name, back.time_ns, back.metadata) == (name, time_ns, metadata)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            Message(Image(np.zeros((1, 2, 2), np.complex64), np.eye(4))),
            "expected a .* plain number type, got complex64",
        ),
        (Message(Image(np.zeros((2, 2)), np.eye(4))), r"expected a \(z, y, x\) array .* got float64 \(2, 2\)"),
        (Message(Image(np.zeros((1, 2, 2), "u1"), np.eye(4) * np.nan)), r"IMAGE with the geometry \[\[nan, "),
        (Message(Image(np.zeros((1, 1, 70000), "u1"), np.eye(4))), "IMAGE holds 1 to 65535 voxels along an axis"),
        (
            Message(ImagePart(np.zeros((1, 2, 2), "u1"), np.eye(4), (1, 0, 0), (2, 2, 1))),
            r"a part of \(2, 2, 1\) at \(1",
        ),
        (
            Message(Text("x"), "a name of 22 letters.."),
            "the name 'a name of 22 letters..' has 22 bytes, 20 fit; shorten",
        ),
        (Message(Status(70000)), "STATUS with a number that does not fit its field"),
        (Message(Transform(np.eye(4) * 1e300)), "TRANSFORM with a number that does not fit its field"),
        (Message(Sensor(np.zeros(256))), r"SENSOR holds up to 255 readings, got an array of shape \(256,\)"),
        (Message(PolyData(np.zeros((4, 2), np.float32))), r"expected points \(n, 3\), got \(4, 2\)"),
        (
            Message(PolyData(np.zeros((1, 3), np.float32), lines=Cells(1, np.array([1, 9], np.uint32)))),
            "POLYDATA with a cell that refers to point 9 of 1",
        ),
        (Message(Bind((("x", Bind(())),))), "a BIND within a BIND; send its children"),
        (Message(Text("x"), version=2, metadata={"k" * 70000: ""}), "STRING with a number that does not fit its field"),
    ],
)
def test_what_openigtlink_cannot_hold_is_our_mistake(message, text):
    with pytest.raises(ValueError, match="encode: " + text):
        encode(message)
