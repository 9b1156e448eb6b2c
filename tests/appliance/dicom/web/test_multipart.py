# SPDX-License-Identifier: Apache-2.0
"""The multipart parser: the same parts however the bytes come, and PeerError for everything else."""

import random

import pytest

from appliance.dicom.web.multipart import Data, MultipartParser, Part, PartEnd, boundary_of
from appliance.errors import PeerError

BODY = (
    b"preamble\r\n--B\r\nContent-Type: application/dicom\r\nX: y\r\n\r\nhello\r\n--X\r\n--B\r\n\r\n\r\n"
    b"--B \r\nContent-Type: Image/PNG; q=1\r\n\r\n\r\n\r\n--B--\r\nepilogue"
)
PARTS = [["application/dicom", b"hello\r\n--X"], ["", b""], ["image/png", b"\r\n"]]


def parse(body, cuts, boundary=b"B"):
    parser, parts, n_ends, at = MultipartParser(boundary), [], 0, 0
    for cut in (*cuts, len(body)):
        for event in parser.feed(body[at:cut]):
            if isinstance(event, Part):
                parts.append([event.content_type, b""])
            elif isinstance(event, Data):
                parts[-1][1] += event.data
            else:
                assert isinstance(event, PartEnd)
                n_ends += 1
        at = cut
    parser.close()
    assert n_ends == len(parts)
    return parts


def test_whole_at_every_cut_and_byte_by_byte():
    assert parse(BODY, []) == PARTS
    for cut in range(len(BODY)):
        assert parse(BODY, [cut]) == PARTS
    assert parse(BODY, range(len(BODY))) == PARTS


def test_truncated_at_every_byte_is_told():
    end = BODY.index(b"--B--") + 5
    for cut in range(end):
        with pytest.raises(PeerError, match="ends before its last delimiter"):
            parse(BODY[:cut], [])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"x" * 100_000, "does not begin with its boundary"),
        (b"--B garbage\r\n\r\n\r\n--B--", "followed by something else"),
        (b"--B" + b" " * 200, "not followed by a line end"),
        (b"--B\r\n" + b"h" * 9000, "the headers of a part have more than 8192 bytes"),
        (b"--B\r\n\r\n\r\n" * 100_001, "more than 100000 parts"),
    ],
)
def test_what_breaks_the_format_is_told(body, words):
    with pytest.raises(PeerError, match=words):
        parse(body, [])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', ("application/dicom", b"abc")),
        ('multipart/related; boundary="a b:c"; type=Application/DICOM', ("application/dicom", b"a b:c")),
        ("multipart/related; boundary=x", ("", b"x")),
    ],
)
def test_content_types(header, expected):
    assert boundary_of(header) == expected


@pytest.mark.parametrize(
    "header",
    [
        *("", "text/html", "multipart/related", "multipart/related; boundary="),
        f"multipart/related; boundary={'x' * 201}",
    ],
)
def test_content_types_that_are_not_taken(header):
    with pytest.raises(PeerError):
        boundary_of(header)


def test_noise():
    random.seed(4)
    n_refused = 0
    for _ in range(20_000):
        raw = bytearray(BODY)
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(len(raw))] = random.choice(b"\r\n-B \0x")
        try:
            parse(bytes(raw), sorted(random.randrange(len(raw)) for _ in range(3)))
        except PeerError:
            n_refused += 1
    assert 0 < n_refused < 20_000
