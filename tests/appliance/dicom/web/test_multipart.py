# SPDX-License-Identifier: Apache-2.0
"""The multipart parser: the same parts however the bytes come, and PeerError for everything else."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dicom.web.multipart import Data, MultipartParser, Part, PartEnd, boundary_of
from appliance.errors import PeerError

BODY = (
    b"preamble\r\n--B\r\nContent-Type: application/dicom\r\nX: y\r\n\r\nhello\r\n--X\r\n--B\r\n\r\n\r\n"
    b"--B \r\nContent-Type: Image/PNG; q=1\r\n\r\n\r\n\r\n--B--\r\nepilogue"
)
CONTENT_TYPES = (
    'multipart/related; type="application/dicom"; boundary=abc',
    "multipart/related; type*=x'y'z; boundary*0=\"a b\"; boundary*1*=utf-8'en'%ff; boundary=x",
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


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(("", "application/dicom", "image/png")), st.binary(max_size=60)), max_size=5),
    st.lists(st.integers(0, 600), max_size=12),
    st.sampled_from((b"B", b"-", b"0123 4567", b"--B--")),
)
def test_any_parts_at_any_cuts_are_the_same_parts(parts, cuts, boundary):
    delimiter = b"--" + boundary
    parts = [[kind, data] for kind, data in parts if b"\r\n" + delimiter not in b"\r\n" + data + b"\r\n"]
    heads = [f"Content-Type: {kind}\r\n\r\n".encode() if kind else b"\r\n" for kind, _ in parts]
    body = b"".join(delimiter + b"\r\n" + head + data + b"\r\n" for head, (_, data) in zip(heads, parts, strict=True))
    body += delimiter + b"--"
    cuts = sorted(min(cut, len(body)) for cut in cuts)
    assert parse(body, cuts, boundary) == parts


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
        *("multipart/related; boundary*=x; boundary*0=y", "multipart/related; boundary*=utf-8\0'b'%ff"),
    ],
)
def test_content_types_that_are_not_taken(header):
    with pytest.raises(PeerError):
        boundary_of(header)


def test_noise_in_the_content_type():
    random.seed(5)
    characters = [*map(chr, range(256)), *(";=\"*'%\\() " * 20)]
    n_refused = 0
    for n in range(20_000):
        text = list(CONTENT_TYPES[n % len(CONTENT_TYPES)])
        for _ in range(random.randint(1, 5)):
            text[random.randrange(len(text))] = random.choice(characters)
        try:
            boundary_of("".join(text))
        except PeerError:
            n_refused += 1
    assert 0 < n_refused < 20_000


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
