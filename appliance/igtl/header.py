# SPDX-License-Identifier: Apache-2.0
"""The fixed header, the extended header and the metadata of an OpenIGTLink message.

Header version 1 belongs to protocol 1 and 2; header versions 2 and 3 add the extended header and metadata
(protocol 3). All numbers are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import fastcrc

from appliance.errors import PeerError
from appliance.igtl.words import ASCII, UTF8

_HEADER = struct.Struct(">H12s20sQQQ")
_EXTENDED = struct.Struct(">HHII")
_ENTRY = struct.Struct(">HHI")  # of the metadata's index: key length, encoding of the value, value length
HEADER_BYTES = _HEADER.size
_crc64: Callable[[bytes | bytearray | memoryview, int], int] = fastcrc.crc64.ecma_182


class Header(NamedTuple):
    """The 58 bytes in front of every message."""

    version: int
    type: str
    device_name: str
    timestamp: int  # 32.32 fixed point seconds of UTC since 1970
    body_bytes: int
    crc: int


def checksum(body: bytes | bytearray | memoryview, before: int = 0) -> int:
    """Return the CRC-64 (ECMA-182, not reflected, initial value 0) of `body`, behind bytes whose CRC is `before`."""
    return _crc64(body, before)


def to_timestamp(time_ns: int) -> int:
    """Return nanoseconds of UTC since 1970 as 32.32 fixed point, rounded up so that it converts back exactly."""
    return -(-(time_ns << 32) // 1_000_000_000)


def from_timestamp(timestamp: int) -> int:
    """Return a 32.32 fixed point time stamp as nanoseconds of UTC since 1970."""
    return (timestamp * 1_000_000_000) >> 32


def read_header(data: bytes | memoryview) -> Header:
    """Decode exactly `HEADER_BYTES` bytes. Raises PeerError when they cannot be OpenIGTLink."""
    version, kind, device, timestamp, body_bytes, crc = _HEADER.unpack(data)
    if not 1 <= version <= 3:
        raise PeerError(f"igtl: header version {version!r}, not 1 to 3; is the peer speaking OpenIGTLink?")
    return Header(version, *_read_names(kind, device), timestamp, body_bytes, crc)


@lru_cache(256)  # a peer sends the same few again and again
def _read_names(kind: bytes, device: bytes) -> tuple[str, str]:
    kind = kind.rstrip(b"\0 ")
    if not kind or not kind.isascii() or not kind.decode("ascii").isprintable():
        raise PeerError(f"igtl: message type {kind!r} is not text; is the peer speaking OpenIGTLink?")
    return kind.decode("ascii"), device.split(b"\0", 1)[0].decode("utf-8", "replace")


def frame_message(
    version: int, kind: str, device_name: bytes, timestamp: int, parts: Sequence[bytes | memoryview]
) -> bytes:
    """Put the fixed header in front of a body given in parts; each byte of them is copied once."""
    crc, body_bytes = 0, 0
    for part in parts:
        crc, body_bytes = checksum(part, crc), body_bytes + len(part)
    header = _HEADER.pack(version, kind.encode("ascii"), device_name, timestamp, body_bytes, crc)
    return b"".join((header, *parts))


def write_metadata(metadata: Mapping[str, str], message_id: int) -> tuple[bytes, bytes]:
    """Return the extended header (goes before the content) and the metadata (goes after it)."""
    index, texts = [struct.pack(">H", len(metadata))], []
    for key, value in metadata.items():
        encoded_key, encoded = key.encode("utf-8"), value.encode("utf-8")
        index.append(_ENTRY.pack(len(encoded_key), ASCII if encoded.isascii() else UTF8, len(encoded)))
        texts += [encoded_key, encoded]
    header, body = b"".join(index), b"".join(texts)
    return _EXTENDED.pack(_EXTENDED.size, len(header), len(body), message_id), header + body


def split_body(body: memoryview) -> tuple[memoryview, dict[str, str], int]:
    """Split a body of header version 2 or 3 into (content, metadata, message id)."""
    if len(body) < _EXTENDED.size:
        raise PeerError(f"igtl: body of {len(body)} bytes cannot hold the extended header of 12; mend the sender")
    extended_bytes, header_bytes, text_bytes, message_id = _EXTENDED.unpack_from(body)
    metadata_bytes = header_bytes + text_bytes
    if extended_bytes < _EXTENDED.size or extended_bytes + metadata_bytes > len(body):
        raise PeerError(
            f"igtl: extended header of {extended_bytes} and metadata of {metadata_bytes} bytes "
            f"do not fit a body of {len(body)}; mend the sender"
        )
    end = len(body) - metadata_bytes
    return body[extended_bytes:end], _read_metadata(bytes(body[end:]), header_bytes), message_id


def _read_metadata(data: bytes, header_bytes: int) -> dict[str, str]:
    if header_bytes < 2:
        return {}
    (count,) = struct.unpack_from(">H", data)
    if 2 + count * _ENTRY.size > header_bytes:
        raise PeerError(f"igtl: {count} metadata entries do not fit an index of {header_bytes} bytes; mend the sender")
    metadata, at = {}, header_bytes
    for key_bytes, _, value_bytes in _ENTRY.iter_unpack(data[2 : 2 + count * _ENTRY.size]):
        if at + key_bytes + value_bytes > len(data):
            raise PeerError(
                f"igtl: metadata entry of {key_bytes + value_bytes} bytes runs over its end; mend the sender"
            )
        key = data[at : at + key_bytes].decode("utf-8", "replace")
        metadata[key] = data[at + key_bytes : at + key_bytes + value_bytes].decode("utf-8", "replace")
        at += key_bytes + value_bytes
    return metadata
