# SPDX-License-Identifier: Apache-2.0
"""OpenIGTLink that is broken or hostile: every case says what is wrong, nothing asks for memory."""

import struct

import numpy as np
import pytest
from fuzzing import fuzz_igtl
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import PeerError
from appliance.igtl import Connection, Image, Message, Text, encode
from appliance.igtl.header import checksum

IMAGE_BODY = encode(Message(Image(np.arange(20, dtype="u2").reshape(1, 5, 4), np.eye(4))))[58:]


def with_body(kind, body, version=1):
    return struct.pack(">H12s20sQQQ", version, kind, b"x", 0, len(body), checksum(body)) + body


def surface(n_points, n_cells=0, cells_bytes=0, n_attributes=0):
    return struct.pack(">10I", n_points, n_cells, cells_bytes, 0, 0, 0, 0, 0, 0, n_attributes)


def bind(kind, size, names=b"\0"):
    return struct.pack(">H12sQH", 1, kind, size, len(names)) + names


def test_a_wrong_checksum_is_refused():
    wire = bytearray(encode(Message(Text("hello"))))
    wire[-1] ^= 1
    with pytest.raises(PeerError, match=r"igtl: STRING of 9 bytes has checksum 0x.*, its header says 0x.*; look for"):
        Connection().receive(bytes(wire))


@pytest.mark.parametrize("kind", ["IMAGE", "POLYDATA", "BIND", "STRING", "NDARRAY"])
@pytest.mark.parametrize("size", [2**63, 2**64 - 1, 1001])
def test_a_huge_length_is_refused_before_anything_is_kept(kind, size):
    header = struct.pack(">H12s20sQQQ", 1, kind.encode(), b"x", 0, size, 0)
    with pytest.raises(PeerError, match=f"igtl: {kind} announces {size} bytes, at most 1000 are taken; let the peer"):
        Connection(max_body_bytes=1000).receive(header)


def test_types_that_are_never_long_have_a_limit_of_their_own():
    header = struct.pack(">H12s20sQQQ", 1, b"TDATA", b"x", 0, (1 << 20) + 1, 0)
    with pytest.raises(PeerError, match="igtl: TDATA announces 1048577 bytes, at most 1048576 are taken"):
        Connection().receive(header)


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
        (with_body(b"IMAGE", IMAGE_BODY + b"\0"), r"igtl: IMAGE of \(1, 5, 4\) uint16 has 41 bytes, not 40"),
        (with_body(b"IMAGE", IMAGE_BODY[:3] + b"\x63" + IMAGE_BODY[4:]), "igtl: IMAGE with scalar type 99"),
        (with_body(b"IMAGE", IMAGE_BODY[:6] + bytes(6) + IMAGE_BODY[12:66] + bytes(6)), "igtl: IMAGE of size"),
        (
            with_body(b"IMAGE", IMAGE_BODY[:6] + b"\xff" * 6 + IMAGE_BODY[12:66] + b"\xff" * 6),
            "has 0 bytes, not 562924184010750",
        ),
        (
            with_body(b"IMAGE", IMAGE_BODY[:61] + b"\1" + IMAGE_BODY[62:]),
            r"part \(4, 5, 1\) at \(1, 0, 0\), which is not",
        ),
        (with_body(b"IMAGE", IMAGE_BODY[:66] + bytes(2) + IMAGE_BODY[68:]), "igtl: IMAGE updates a part"),
        (with_body(b"IMAGE", IMAGE_BODY[:12] + b"\x7f\xc0\0\0" + IMAGE_BODY[16:]), "with geometry .*nan"),
        (with_body(b"STRING", b"\0", 2), "igtl: body of 1 bytes cannot hold the extended header"),
        (with_body(b"STRING", struct.pack(">HHII", 12, 2, 2**32 - 1, 0), 2), "do not fit a body of 12"),
        (with_body(b"STRING", struct.pack(">HHIIH", 12, 2, 0, 0, 500), 2), "500 metadata entries do not fit"),
        (
            with_body(b"STRING", struct.pack(">HHIIHHHI", 12, 10, 0, 0, 1, 9, 3, 2**31), 2),
            "metadata entry of 2147483657 bytes runs over its end",
        ),
        (with_body(b"TDATA", bytes(71)), "igtl: TDATA with a content of 71 bytes"),
        (with_body(b"POINT", bytes(137)), "igtl: POINT with a content of 137 bytes"),
        (with_body(b"SENSOR", struct.pack(">BBQ", 255, 0, 0)), "igtl: SENSOR of 255 readings in a content of 10 bytes"),
        (with_body(b"POSITION", bytes(16)), "igtl: POSITION of 16 bytes, not 12, 24 or 28"),
        (with_body(b"RTS_TDATA", b""), "igtl: RTS_TDATA with a content of 0 bytes"),
        (
            with_body(b"POLYDATA", surface(2**32 - 1)),
            "igtl: POLYDATA of 4294967295 points, .* does not fit its content",
        ),
        (with_body(b"POLYDATA", surface(0, 2**32 - 1, 2**32 - 4)), "bytes of cells .* does not fit its content of 40"),
        (with_body(b"POLYDATA", surface(0, 1, 6) + bytes(6)), r"\[6, 0, 0, 0\] bytes of cells .* does not fit"),
        (with_body(b"POLYDATA", surface(0, 0, 0, 2**32 - 1)), "and 4294967295 attributes does not fit its content"),
        (with_body(b"POLYDATA", surface(0, 2**32 - 1, 4) + bytes(4)), "with 4294967295 cells .* in 1 numbers"),
        (with_body(b"POLYDATA", surface(0, 0, 4) + bytes(4)), "with 0 cells in 1 numbers"),
        (with_body(b"POLYDATA", surface(0, 2, 8) + b"\0\0\0\2\0\0\0\0"), "with 2 cells that do not end with their 2"),
        (with_body(b"POLYDATA", surface(1, 1, 8) + bytes(12) + b"\0\0\0\1\0\0\0\1"), "that refers to point 1 of 1"),
        (
            with_body(b"POLYDATA", surface(0, 0, 0, 1) + struct.pack(">BBI", 0, 255, 2**32 - 1)),
            "with attributes of 1095216660225 values in 0 bytes",
        ),
        (with_body(b"POLYDATA", surface(0, 0, 0, 1) + bytes(6)), "with 0 names for 1 attributes"),
        (with_body(b"BIND", b"\xff\xff"), "igtl: BIND of 65535 messages in 2 bytes"),
        (with_body(b"BIND", bind(b"BIND", 0)), "igtl: BIND with a 'BIND' in it"),
        (with_body(b"BIND", bind(b"STRING", 2**63)), "igtl: BIND of 1 messages with 25 bytes does not hold them"),
        (with_body(b"BIND", bind(b"STRING", 0, b"")), "igtl: BIND of 1 messages .* does not hold them"),
    ],
)
def test_malformed_messages_say_what_is_wrong(wire, text):
    with pytest.raises(PeerError, match=text):
        Connection().receive(wire)


def test_cells_of_different_sizes_are_walked_through_only_so_far():
    flat = np.zeros((1 << 20) + 3, ">u4")
    flat[0] = 1
    body = struct.pack(">10I", 1, len(flat) - 1, 4 * len(flat), *[0] * 7) + bytes(12) + flat.tobytes()
    with pytest.raises(PeerError, match=r"with 1048578 cells of different sizes .*, at most 1048576 are taken"):
        Connection().receive(with_body(b"POLYDATA", body))


def test_five_thousand_damaged_messages_raise_nothing_but_peer_error():
    outcomes, failures, _ = fuzz_igtl.fuzz(5000, seed=1)
    assert failures == []
    assert len(outcomes) == 9
    assert sum(counts.total() for counts in outcomes.values()) == 5000
    assert sum(counts["read"] for counts in outcomes.values()) > 1000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_noise_raises_nothing_but_peer_error(noise):
    connection = Connection(max_body_bytes=1 << 20)
    try:
        connection.receive(noise)
    except PeerError as error:
        assert str(error).startswith("igtl: ")
