# SPDX-License-Identifier: Apache-2.0
"""The file of a recording: whole, cut at any byte, damaged anywhere, and made by somebody who means harm."""

import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RecordingError
from appliance.recording import HEAD_BYTES, MAGIC, MAX_PIECE_BYTES, Header, Kind, Recording, encode_head

HEADER = Header(protocol="mrd", pipeline="mri-live", peer="192.0.2.1:5000", started_ns=1_700_000_000 * 10**9)
PIECES = [(0, b"config"), (5, b""), (5, bytes(range(256)) * 3), (2_000_000_000, b"close")]


def encode(*parts, magic=MAGIC):
    """The bytes of a file with these parts (kind, time, data)."""
    out, crc = magic, 0
    for kind, since_ns, data in parts:
        head, crc = encode_head(kind, since_ns, data, crc)
        out += head + data
    return out


def head_part(header=HEADER):
    return (Kind.HEADER, 0, header.model_dump_json().encode())


PARTS = [head_part(), *((Kind.PIECE, *piece) for piece in PIECES), (Kind.END, 2_000_000_001, b"")]
WHOLE = encode(*PARTS)
ENDS = [len(encode(*PARTS[: n + 1])) for n in range(len(PARTS))]  # where each part ends


@pytest.fixture
def read(tmp_path):
    def read(data):
        """Give (pieces, why it is cut, error) of a file with these bytes."""
        path = tmp_path / "x.recording"
        path.write_bytes(data)
        pieces = []
        try:
            with Recording(path) as recording:
                assert recording.header == HEADER
                for piece in recording.pieces():
                    pieces.append((piece.since_ns, piece.data))
                return pieces, recording.cut, ""
        except RecordingError as error:
            return pieces, "", str(error)

    return read


def test_what_was_written_is_read(read):
    assert read(WHOLE) == (PIECES, "", "")


def test_a_file_cut_at_any_byte_gives_its_whole_pieces_and_says_so(read):
    for n_bytes in range(len(WHOLE)):
        pieces, cut, error = read(WHOLE[:n_bytes])
        n_whole = sum(end <= n_bytes for end in ENDS)
        assert pieces == PIECES[: max(0, n_whole - 1)]
        if n_bytes < len(MAGIC):
            assert error == "recording 'x.recording': does not begin as one; choose a file that `recordings` lists"
        elif n_whole == 0:
            assert error == "recording 'x.recording': ends inside its header; nothing of it can be replayed"
        else:
            assert cut == f"the file ends inside part {n_whole + 1}: nearscan was killed, or the disk was full"


def test_one_changed_byte_is_found_wherever_it_is(read):
    for position in range(len(MAGIC), len(WHOLE)):
        pieces, cut, error = read(WHOLE[:position] + bytes([WHOLE[position] ^ 0x40]) + WHOLE[position + 1 :])
        n_before = sum(end <= position for end in ENDS)
        assert pieces == PIECES[: max(0, n_before - 1)], "what comes before it is given, nothing after it"
        assert cut or f"part {n_before + 1}, at byte {([len(MAGIC), *ENDS])[n_before]}, is damaged" in error


def test_a_part_that_is_missing_is_found(read):
    for n in range(1, len(PARTS) - 1):
        start, end = ENDS[n - 1], ENDS[n]
        pieces, _, error = read(WHOLE[:start] + WHOLE[end:])
        assert (pieces, "its checksum is" in error) == (PIECES[: n - 1], True)


def test_the_reason_of_a_stop_is_told(read):
    data = encode(*PARTS[:-1], (Kind.END, 2_000_000_001, b"the disk does not keep up"))
    assert read(data) == (PIECES, "the disk does not keep up", "")


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        (encode((Kind.PIECE, 1 << 63, b"x"), magic=b""), "its checksum is"),
        (
            struct.pack("<IIQQ", 0, Kind.PIECE, 0, 1 << 63),
            f"it says it has {1 << 63} bytes, and {16 << 20} are the most",
        ),
        (struct.pack("<IIQQ", 0, Kind.END, 0, 1 << 20), "it says it has 1048576 bytes, and 4096 are the most"),
        (bytes(64), "its checksum is"),
    ],
)
def test_a_hostile_tail(read, tail, words):
    pieces, _, error = read(encode(*PARTS[:2]) + tail)
    assert pieces == PIECES[:1]
    assert words in error
    assert error.endswith("; what comes before it can be replayed")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(Kind.PIECE, 1 << 63, b"x")], f"its time is {1 << 63} ns, after 0 ns"),
        ([(Kind.PIECE, 9, b"x"), (Kind.PIECE, 8, b"x")], "its time is 8 ns, after 9 ns"),
        ([(7, 9, b"x")], "its kind is 7"),
        ([head_part()], "its kind is 1"),
        ([(Kind.END, 9, b"\x1b[2J")], "the reason in its end mark is no text"),
        ([(Kind.END, 9, b""), (Kind.PIECE, 9, b"x")], "more follows its end mark"),
    ],
)
def test_right_checksums_do_not_make_it_right(read, parts, words):
    assert words in read(encode(head_part(), *parts))[2]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "the header's JSON makes no sense"),
        (b"[" * 4000, "the header's JSON makes no sense"),
        (b'{"protocol": "ftp", "pipeline": "x", "peer": "", "started_ns": 0}', "the header's protocol makes no sense"),
        (b'{"protocol": "mrd", "pipeline": "../x", "peer": "", "started_ns": 0}', "the header's pipeline makes"),
        (b'{"protocol": "mrd", "pipeline": "x", "peer": "\\u001b[2J", "started_ns": 0}', "the header's peer makes"),
        (b'{"protocol": "mrd", "pipeline": "x", "peer": "", "started_ns": 1e300}', "the header's started_ns makes"),
    ],
)
def test_a_hostile_header(read, header, words):
    assert words in read(encode((Kind.HEADER, 0, header)))[2]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecordingError, match=r"^recording 'no': cannot be read: No such file or directory$"):
        Recording(tmp_path / "no")
    with pytest.raises(RecordingError, match=r"^recording '.*': cannot be read: Is a directory$"):
        Recording(tmp_path)


def sealed(parts):
    """Parts with the right checksums and whatever kinds, times and lengths."""
    out, crc = MAGIC, 0
    for kind, since_ns, n_bytes, data in parts:
        checked = struct.pack("<IQQ", kind, since_ns, n_bytes)
        crc = zlib.crc32(data, zlib.crc32(checked, crc))
        out += struct.pack("<I", crc) + checked + data
    return out


@given(
    st.one_of(
        st.binary(max_size=200).map(lambda data: MAGIC + data),
        st.lists(
            st.tuples(
                st.sampled_from([1, 2, 3, 0, 2**32 - 1]),
                st.sampled_from([0, 1, 2**62, 2**64 - 1]),
                st.sampled_from([0, 1, 8, 2**31, 2**63, MAX_PIECE_BYTES + 1]),
                st.binary(max_size=8),
            ),
            max_size=5,
        ).map(lambda parts: sealed([(1, 0, len(head_part()[2]), head_part()[2]), *parts])),
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=40)).map(
            lambda cut: WHOLE[: cut[0]] + cut[1] + WHOLE[cut[0] + len(cut[1]) :]
        ),
    )
)
def test_whatever_the_file_it_is_read_or_refused_by_name(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.recording"
    path.write_bytes(data)
    try:
        with Recording(path) as recording:
            pieces = list(recording.pieces())
    except RecordingError as error:
        assert str(error).startswith("recording 'any.recording': ")
    else:
        assert all(a.since_ns <= b.since_ns for a, b in itertools.pairwise(pieces))
        assert sum(len(piece.data) + HEAD_BYTES for piece in pieces) <= len(data)
