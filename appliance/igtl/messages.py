# SPDX-License-Identifier: Apache-2.0
"""What OpenIGTLink messages say, and their bytes.

Geometry: LPS mm inside, RAS on the wire. IMAGE has a field for either, but most displays never read it and
assume RAS, so RAS is what we send, and the field says so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from appliance.errors import PeerError
from appliance.frames import Affine, Array
from appliance.igtl.header import (
    Header,
    frame_message,
    from_timestamp,
    split_body,
    to_timestamp,
    write_metadata,
)

_IMAGE = struct.Struct(">HBBBB3H12f6H")
_STATUS = struct.Struct(">Hq20s")
_SCALARS = {2: "i1", 3: "u1", 4: "i2", 5: "u2", 6: "i4", 7: "u4", 10: "f4", 11: "f8"}
_CODES = {np.dtype(name): code for code, name in _SCALARS.items()}
_BIG, _LITTLE = 1, 2
_RAS, _LPS = 1, 2
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS <-> RAS
_ASCII, _UTF8 = 3, 106  # IANA MIBenum
_LONGEST_TEXT = 65535

# STATUS codes of the standard that we use
OK, NOT_FOUND, BUSY, CONNECTION_LOST, NOT_READY, HARDWARE_FAILURE, SHUTTING_DOWN = 1, 4, 6, 7, 13, 18, 19


@dataclass(frozen=True, eq=False)
class Image:
    """IMAGE. `array` is (z, y, x) or (z, y, x, component); `affine` maps (x, y, z) index to LPS mm."""

    array: Array
    affine: Affine


@dataclass(frozen=True)
class Status:
    """STATUS: how the sender is."""

    code: int
    name: str = ""
    text: str = ""
    subcode: int = 0


@dataclass(frozen=True)
class Text:
    """STRING."""

    text: str


@dataclass(frozen=True, eq=False)
class Transform:
    """TRANSFORM: a (4, 4) matrix exactly as on the wire; the message does not say between which spaces."""

    matrix: Affine


@dataclass(frozen=True)
class Capability:
    """CAPABILITY: the message types that the sender understands."""

    types: tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """GET_…, STT_… (start) or STP_… (stop): the sender wants `type`, as far as 12 letters can say."""

    action: str
    type: str
    body: bytes = b""


Content = Image | Status | Text | Transform | Capability | Query


@dataclass(frozen=True)
class Message:
    """One message. `metadata` and `message_id` travel only with header version 2 and 3."""

    content: Content
    device_name: str = ""
    time_ns: int = 0  # UTC; 0: not said
    version: int = 1
    metadata: Mapping[str, str] = field(default_factory=dict)
    message_id: int = 0


def encode(message: Message) -> bytes:
    """Return the wire bytes of `message`."""
    kind, parts = _write(message.content)
    if message.version > 1:
        before, after = write_metadata(message.metadata, message.message_id)
        parts = (before, *parts, after)
    return frame_message(message.version, kind, message.device_name, to_timestamp(message.time_ns), parts)


def understands(kind: str) -> bool:
    """Whether `decode` knows messages of type `kind`."""
    return kind in _READERS or kind[:4] in _ACTIONS


def decode(header: Header, body: bytes) -> Message:
    """Return the message in `body`, whose CRC the caller has checked. Raises PeerError."""
    content, metadata, message_id = (memoryview(body), {}, 0) if header.version == 1 else split_body(body)
    try:
        if header.type[:4] in _ACTIONS:
            said: Content = Query(header.type[:3], header.type[4:], bytes(content))
        else:
            said = _READERS[header.type](content)
    except struct.error as error:
        raise PeerError(
            f"igtl: {header.type} with a content of {len(content)} bytes: {error}; mend the sender"
        ) from error
    return Message(said, header.device_name, from_timestamp(header.timestamp), header.version, metadata, message_id)


def _write(content: Content) -> tuple[str, tuple[bytes, ...]]:
    match content:
        case Image():
            return "IMAGE", _write_image(content)
        case Status():
            head = _STATUS.pack(content.code, content.subcode, content.name.encode("utf-8")[:20])
            return "STATUS", (head, content.text.encode("utf-8"), b"\0")
        case Text():
            data = content.text.encode("utf-8")[:_LONGEST_TEXT]
            return "STRING", (struct.pack(">HH", _ASCII if data.isascii() else _UTF8, len(data)), data)
        case Transform():
            return "TRANSFORM", (content.matrix[:3].T.astype(">f4").tobytes(),)
        case Capability():
            return "CAPABILITY", tuple(struct.pack("12s", kind.encode("ascii")) for kind in content.types)
        case Query():
            return f"{content.action}_{content.type}"[:12], (content.body,)


def _write_image(image: Image) -> tuple[bytes, bytes]:
    array = np.asarray(image.array)
    if array.dtype.newbyteorder("=") not in _CODES or array.ndim not in (3, 4):
        raise ValueError(f"encode: expected a (z, y, x) array of a plain number type, got {array.dtype} {array.shape}")
    size_zyx, components = array.shape[:3], array.shape[3] if array.ndim == 4 else 1
    if not 0 < min(size_zyx) <= max(size_zyx) <= 0xFFFF or not 0 < components <= 0xFF:
        raise ValueError(f"encode: IMAGE holds 1 to 65535 voxels along an axis, got {array.shape}")
    size = size_zyx[::-1]
    ras = _FLIP @ image.affine
    centre = ras @ [*((n - 1) / 2 for n in size), 1.0]
    head = _IMAGE.pack(
        *(1, components, _CODES[array.dtype.newbyteorder("=")], _LITTLE, _RAS),
        *size,
        *ras[:3, :3].T.ravel(),  # the columns, each direction times spacing
        *centre[:3],  # "position" is the centre of the image
        *(0, 0, 0),
        *size,  # the sub-volume is the whole
    )
    return head, np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def _read_image(content: memoryview) -> Image:
    values = _IMAGE.unpack_from(content)
    _, components, scalar, endian, coordinates = values[:5]
    size, geometry, offset, part = values[5:8], np.array(values[8:20], np.float64), values[20:23], values[23:26]
    if scalar not in _SCALARS or endian not in (_BIG, _LITTLE) or coordinates not in (_RAS, _LPS) or not components:
        raise PeerError(
            f"igtl: IMAGE with scalar type {scalar}, endian {endian}, coordinates {coordinates} and {components} "
            "components; mend the sender"
        )
    if not min(size) or not np.isfinite(geometry).all():
        raise PeerError(f"igtl: IMAGE of size {size} with geometry {geometry.tolist()}; mend the sender")
    if offset != (0, 0, 0) or part != size:
        raise PeerError(f"igtl: IMAGE updates a part {part} of {size} at {offset}; let the peer send whole images")
    dtype = np.dtype(("<" if endian == _LITTLE else ">") + _SCALARS[scalar])
    shape = (*size[::-1], components) if components > 1 else size[::-1]
    expected = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(content) - _IMAGE.size != expected:
        raise PeerError(
            f"igtl: IMAGE of {shape} {dtype} has {len(content) - _IMAGE.size} bytes, not {expected}; mend the sender"
        )
    affine = np.eye(4)
    affine[:3, :3] = geometry[:9].reshape(3, 3).T
    affine[:3, 3] = geometry[9:] - affine[:3, :3] @ [(n - 1) / 2 for n in size]
    array = np.frombuffer(content, dtype, offset=_IMAGE.size).reshape(shape)
    return Image(array, affine if coordinates == _LPS else _FLIP @ affine)


def _read_status(content: memoryview) -> Status:
    code, subcode, name = _STATUS.unpack_from(content)
    text = bytes(content[_STATUS.size :]).split(b"\0", 1)[0]
    return Status(code, name.split(b"\0", 1)[0].decode("utf-8", "replace"), text.decode("utf-8", "replace"), subcode)


def _read_text(content: memoryview) -> Text:
    _, length = struct.unpack_from(">HH", content)
    if 4 + length > len(content):
        raise PeerError(f"igtl: STRING of {length} bytes runs over its content of {len(content)}; mend the sender")
    return Text(bytes(content[4 : 4 + length]).decode("utf-8", "replace"))


def _read_transform(content: memoryview) -> Transform:
    matrix = np.eye(4)
    matrix[:3] = np.reshape(struct.unpack(">12f", content), (4, 3)).T
    return Transform(matrix)


def _read_capability(content: memoryview) -> Capability:
    names = (name.rstrip(b"\0 ").decode("ascii", "replace") for (name,) in struct.iter_unpack("12s", content))
    return Capability(tuple(names))


_ACTIONS = ("GET_", "STT_", "STP_")
_READERS: dict[str, Callable[[memoryview], Content]] = {
    "IMAGE": _read_image,
    "STATUS": _read_status,
    "STRING": _read_text,
    "TRANSFORM": _read_transform,
    "CAPABILITY": _read_capability,
}
