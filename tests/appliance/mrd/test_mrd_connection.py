# SPDX-License-Identifier: Apache-2.0
"""The parser: whole, in pieces, truncated, out of order, hostile."""

from __future__ import annotations

import io
import struct
from typing import Any

import ismrmrd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolSerializer

from appliance.errors import PeerError
from appliance.mrd import messages as m
from appliance.mrd.connection import Connection, Limits

RNG = np.random.default_rng(6)
IMAGE = np.arange(24, dtype=np.uint16).reshape(1, 2, 3, 4)
LINES = RNG.standard_normal((5, 2, 6)).astype(np.float32).view(np.complex64)


def acquisition_bytes(n: int = 5) -> bytes:
    heads = np.zeros(n, m.ACQUISITION_HEADER)
    heads["idx"]["kspace_encode_step_1"] = np.arange(n)
    return m.encode_acquisitions(heads, LINES[:n])


def image_bytes() -> bytes:
    return m.encode_image(np.zeros(1, m.IMAGE_HEADER)[0], b"<ismrmrdMeta/>", IMAGE)


def with_trajectory() -> bytes:
    line = ismrmrd.Acquisition.from_array(LINES[0], np.full((3, 2), 0.5, np.float32))
    return struct.pack("<H", m.Id.ACQUISITION) + line.to_bytes()


MESSAGES: dict[str, bytes] = {
    "config file": m.encode_config_file("grappa"),
    "config text": m.encode_config_text("<c/>"),
    "header": m.encode_header(b"<h/>\0"),
    "text": m.encode_text("hello\0"),
    "acquisition": acquisition_bytes(1),
    "trajectory": with_trajectory(),
    "image": image_bytes(),
    "waveform": m.encode_waveform(np.zeros(1, m.WAVEFORM_HEADER)[0], np.arange(6, dtype=np.uint32).reshape(2, 3)),
    "close": m.encode_close(),
}
BEFORE = {name: m.encode_header(b"<h/>") for name in ("acquisition", "trajectory", "image", "waveform")}
STREAM = b"".join(
    MESSAGES[name]
    for name in ("config file", "header", "text", "acquisition", "trajectory", "image", "waveform", "close")
)


def plain(event: m.Event) -> tuple[Any, ...]:
    """Copy an event into something comparable (acquisitions are views)."""
    match event:
        case m.Acquisitions(heads, data):
            return tuple(("line", head.tobytes(), line.tobytes()) for head, line in zip(heads, data, strict=True))
        case m.Image(head, meta, data):
            return (("image", head.tobytes(), meta, data.shape, data.tobytes()),)
        case m.Waveform(head, data):
            return (("waveform", head.tobytes(), data.tobytes()),)
        case _:
            return (event,)


def parse(pieces: list[bytes], connection: Connection | None = None) -> list[Any]:
    connection = connection or Connection()
    return [item for piece in pieces for event in connection.receive(piece) for item in plain(event)]


def refused(data: bytes, *, after_header: bool = False, limits: Limits | None = None) -> str:
    connection = Connection(limits=limits)
    with pytest.raises(PeerError) as caught:
        parse([m.encode_header(b"<h/>") if after_header else b"", data], connection)
    return str(caught.value)


@pytest.mark.parametrize("name", MESSAGES)
def test_each_message_whole_split_anywhere_and_truncated(name: str) -> None:
    before, message = BEFORE.get(name, b""), MESSAGES[name]
    expected = parse([before, message])
    assert len(expected) == 1 + bool(before)
    assert parse([bytes([byte]) for byte in before + message]) == expected
    cuts = range(1, len(message)) if len(message) < 500 else [*range(1, 400), len(message) - 1]
    for cut in cuts:
        connection = Connection()
        assert parse([before, message[:cut]], connection) == expected[:-1]
        with pytest.raises(PeerError, match="ended inside a message"):
            connection.end_of_stream()
        assert parse([before, message[:cut], message[cut:]]) == expected


def test_a_stream_is_the_same_however_it_is_cut() -> None:
    expected = parse([STREAM])
    assert len(expected) == 8
    for size in (1, 2, 3, 7, 64, 333, 1000):
        assert parse([STREAM[i : i + size] for i in range(0, len(STREAM), size)]) == expected


def test_values_are_those_sent() -> None:
    config, header, text, line, curved, image, waveform, close = parse([STREAM])
    assert config == m.ConfigFile("grappa")
    assert header == m.Header(b"<h/>")  # the NUL that real clients send is gone
    assert text == m.Text("hello")
    assert close == m.Close()
    assert line[2] == curved[2] == LINES[0].tobytes()  # the trajectory is skipped
    assert image[2:4] == (b"<ismrmrdMeta/>", (1, 2, 3, 4))
    assert image[4] == IMAGE.tobytes()
    assert waveform[2] == np.arange(6, dtype=np.uint32).tobytes()


def test_what_the_reference_library_sends_is_read() -> None:
    stream = io.BytesIO()
    with ProtocolSerializer(stream) as serializer:
        serializer.serialize(ConfigFile("a.xml"))
        stream.write(m.encode_header(b"<h/>"))
        serializer.serialize("parameters")
        acquisition = ismrmrd.Acquisition.from_array(LINES[3])
        acquisition.idx.kspace_encode_step_1 = 77
        acquisition.set_flag(m.Flag.LAST_IN_SLICE)
        serializer.serialize(acquisition)
        serializer.serialize(ismrmrd.Image.from_array(IMAGE[0], transpose=False))
    connection = Connection()
    seen = []
    for event in connection.receive(stream.getvalue()):
        seen.append(type(event))
        if isinstance(event, m.Acquisitions):
            assert event.heads["idx"]["kspace_encode_step_1"].tolist() == [77]
            assert event.heads["flags"].tolist() == [m.Flag.LAST_IN_SLICE.mask]
            assert np.array_equal(event.data[0], LINES[3])
        if isinstance(event, m.Image):
            assert np.array_equal(event.data, IMAGE)
    assert seen == [m.ConfigFile, m.Header, m.Text, m.Acquisitions, m.Image, m.Close]
    assert connection.state == "closed"
    assert parse([m.encode_config_text("x")]) == parse([b"\x02\0\x01\0\0\0x"]) == [m.ConfigText("x")]
    stream = io.BytesIO()
    ProtocolSerializer(stream).serialize(ConfigText("x"))
    assert parse([stream.getvalue()]) == [m.ConfigText("x")]


def test_lines_of_one_shape_come_as_one_run_and_runs_end_where_the_shape_changes() -> None:
    connection = Connection()
    stream = m.encode_header(b"<h/>") + acquisition_bytes(5) + with_trajectory() + acquisition_bytes(2)
    runs = [len(e.heads) for e in connection.receive(stream) if isinstance(e, m.Acquisitions)]
    assert runs == [5, 1, 2]


def test_a_message_larger_than_the_buffer_is_read() -> None:
    connection = Connection("appliance", buffer_bytes=1)
    pixels = RNG.integers(0, 60000, (1, 1, 700, 900)).astype(np.uint16)
    data = m.encode_image(np.zeros(1, m.IMAGE_HEADER)[0], b"", pixels)
    images = [e.data for e in connection.receive(data * 2) if isinstance(e, m.Image)]
    assert len(images) == 2
    assert all(np.array_equal(image, pixels) for image in images)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (m.encode_header(b"<h/>") * 2, "mrd: second HEADER in one connection; send CLOSE and open a new connection"),
        (acquisition_bytes(1), "mrd: ACQUISITION before HEADER; send CONFIG, then HEADER, then data"),
        (image_bytes(), "mrd: IMAGE before HEADER"),
        (m.encode_config_file("a") * 2, "mrd: CONFIG_FILE is not allowed here (state 'configured')"),
        (m.encode_close() + m.encode_text("x"), "mrd: data after CLOSE"),
        (b"yardl\0\0\0", "mrd: this is MRD version 2 (yardl); set the scanner to stream MRD version 1 (ISMRMRD)"),
        (b"GET / HTTP/1.1\r\n", "mrd: unknown message id 17735; this port takes MRD version 1 (ISMRMRD) streams only"),
        (struct.pack("<HI", 3, 2**32 - 1), "mrd: HEADER of 4294967295 bytes announced; at most 16777216 are taken"),
        (struct.pack("<HI", 2, 2**32 - 1), "mrd: CONFIG_TEXT of 4294967295 bytes announced; at most 1048576 are taken"),
        (struct.pack("<HI", 5, 2**20 + 1), "mrd: TEXT of 1048577 bytes announced; at most 1048576 are taken"),
    ],
)
def test_what_is_refused_at_once(data: bytes, text: str) -> None:
    assert refused(data).startswith(text)


def fixed(message_id: m.Id, dtype: np.dtype, **fields: object) -> bytes:
    head = np.zeros(1, dtype)[0]
    for name, value in fields.items():
        head[name] = value
    return struct.pack("<H", message_id) + head.tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {"number_of_samples": 65535, "active_channels": 65535},  # 32 GiB
        {"number_of_samples": 513, "active_channels": 8},
        {"number_of_samples": 512, "active_channels": 9},
        {"number_of_samples": 0, "active_channels": 8},
        {"number_of_samples": 512, "active_channels": 0},
        {"number_of_samples": 512, "active_channels": 8, "trajectory_dimensions": 65535},
    ],
)
def test_an_acquisition_beyond_the_limits_is_refused_from_its_header(fields: dict[str, int]) -> None:
    data = fixed(m.Id.ACQUISITION, m.ACQUISITION_HEADER, **fields)
    text = refused(data, after_header=True, limits=Limits(n_samples=512, n_channels=8))
    assert f"{fields['active_channels']} channels of {fields['number_of_samples']} samples" in text
    assert "at most 8 channels of 512 samples are taken" in text


def test_an_image_beyond_the_limits_is_refused_from_its_header() -> None:
    def image(n_meta: int, **fields: object) -> str:
        fixed_part = fixed(m.Id.IMAGE, m.IMAGE_HEADER, **{"data_type": 8, "channels": 1, **fields})
        return refused(fixed_part + struct.pack("<Q", n_meta), after_header=True)

    assert "65535x65535x65535 pixels" in image(0, matrix_size=(65535,) * 3, channels=65535)
    assert "18446744073709551615 bytes of meta" in image(2**64 - 1, matrix_size=(4, 4, 1))
    assert "0x4x1 pixels (0 bytes)" in image(0, matrix_size=(0, 4, 1))
    assert "image of unknown data type 9; types 1 to 8 are known" in image(0, matrix_size=(4, 4, 1), data_type=9)


def test_a_waveform_beyond_the_limits_is_refused_from_its_header() -> None:
    data = fixed(m.Id.WAVEFORM, m.WAVEFORM_HEADER, channels=65535, number_of_samples=65535)
    assert refused(data, after_header=True).startswith("mrd: waveform of 65535 channels of 65535 samples")


def test_hanging_up_before_close_is_told_from_after() -> None:
    connection = Connection()
    with pytest.raises(PeerError, match="the connection ended without CLOSE; send CLOSE"):
        connection.end_of_stream()
    assert parse([m.encode_close()], connection) == [m.Close()]
    connection.end_of_stream()


def test_our_own_mistake_is_a_value_error() -> None:
    connection = Connection()
    with pytest.raises(ValueError, match="do not fit"):
        connection.received(len(connection.space()) + 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_raise_anything_but_peer_error(data: st.DataObject) -> None:
    """Real messages with bytes flipped, cut and joined, in random pieces."""
    parts = data.draw(st.lists(st.sampled_from(list(MESSAGES.values())) | st.binary(max_size=40), max_size=6))
    stream = bytearray(b"".join(parts))
    for _ in range(data.draw(st.integers(0, 4))):
        if stream:
            stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(stream)))
    connection = Connection(limits=Limits(image_bytes=1 << 16, n_samples=64, n_channels=8))
    try:
        for piece in (bytes(stream[:cut]), bytes(stream[cut:])):
            for event in connection.receive(piece):
                plain(event)
        connection.end_of_stream()
    except PeerError as error:
        assert str(error).startswith("mrd: ")
