# SPDX-License-Identifier: Apache-2.0
"""A message and its bytes: which content has which type, metadata around it, and BIND, several in one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.errors import PeerError
from appliance.igtl import geometry, images, queries, tracking, words
from appliance.igtl.header import (
    Header,
    frame_message,
    from_timestamp,
    split_body,
    to_timestamp,
    write_metadata,
)
from appliance.igtl.words import name_bytes, read_name

_CHILD = struct.Struct(">12sQ")
_MOST_CHILDREN = 1024
_Parts = Sequence[bytes | memoryview]


@dataclass(frozen=True, eq=False)
class Bind:
    """BIND: several contents with a name each; no BIND within."""

    children: tuple[tuple[str, Content], ...]


Content = (
    images.Image
    | images.ImagePart
    | images.ImageInfos
    | images.LabelInfos
    | words.Status
    | words.Text
    | words.Sensor
    | tracking.Transform
    | tracking.Position
    | tracking.TrackingData
    | tracking.QuaternionData
    | geometry.Points
    | geometry.Trajectories
    | geometry.PolyData
    | queries.Capability
    | queries.Query
    | queries.Reply
    | Bind
)


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
    """Return the wire bytes of `message`. Raises ValueError where OpenIGTLink cannot hold what it says."""
    kind = type_of(message.content)
    try:
        parts = _write(message.content)
        if message.version > 1:
            before, after = write_metadata(message.metadata, message.message_id)
            parts = (before, *parts, after)
        name = name_bytes(message.device_name)
        return frame_message(message.version, kind, name, to_timestamp(message.time_ns), parts)
    except (struct.error, OverflowError) as error:  # OverflowError: beyond float32
        raise ValueError(f"encode: {kind} with a number that does not fit its field: {error}") from error


def type_of(content: Content) -> str:
    """Return the message type that goes into the header; longer ones are cut to its 12 letters."""
    if isinstance(content, queries.Query):
        return f"{content.action}_{content.type}"[:12]
    if isinstance(content, queries.Reply):
        return f"RTS_{content.type}"[:12]
    return _TYPES[type(content)][0]


def understands(kind: str) -> bool:
    """Whether `decode` knows messages of type `kind`."""
    return kind in _READERS or kind[:4] in (*queries.ACTIONS, "RTS_")


def decode(header: Header, body: bytes | memoryview) -> Message:
    """Return the message in `body`, whose CRC the caller has checked and which nobody writes to. Raises PeerError."""
    whole = memoryview(body).toreadonly()
    content, metadata, message_id = (whole, {}, 0) if header.version == 1 else split_body(whole)
    said = _read(header.type, content)
    return Message(said, header.device_name, from_timestamp(header.timestamp), header.version, metadata, message_id)


def _read(kind: str, content: memoryview) -> Content:
    try:
        if (read := _READERS.get(kind)) is not None:
            return read(content)
        if kind[:4] == "RTS_":
            return queries.read_reply(kind[4:], content)
        return queries.Query(kind[:3], kind[4:], bytes(content))
    except struct.error as error:
        raise PeerError(f"igtl: {kind} with a content of {len(content)} bytes: {error}; mend the sender") from error


def _write(content: Content) -> _Parts:
    if isinstance(content, queries.Query):
        return (content.body,)
    if isinstance(content, queries.Reply):
        return queries.write_reply(content)
    return _TYPES[type(content)][1](content)


def _write_bind(bind: Bind) -> _Parts:
    if any(isinstance(content, Bind) for _, content in bind.children):
        raise ValueError("encode: a BIND within a BIND; send its children")
    kinds = [name_bytes(type_of(content), 12) for _, content in bind.children]
    bodies = [b"".join(_write(content)) for _, content in bind.children]
    names = b"".join(name_bytes(name) + b"\0" for name, _ in bind.children)
    names += b"\0" * (len(names) % 2)
    table = [_CHILD.pack(kind, len(body)) for kind, body in zip(kinds, bodies, strict=True)]
    padded = [body + b"\0" * (len(body) % 2) for body in bodies]
    return (struct.pack(">H", len(bodies)), *table, struct.pack(">H", len(names)), names, *padded)


def _read_bind(content: memoryview) -> Bind:
    (count,) = struct.unpack_from(">H", content)
    at = 2 + count * _CHILD.size
    if count > _MOST_CHILDREN or at + 2 > len(content):
        raise PeerError(f"igtl: BIND of {count} messages in {len(content)} bytes; mend the sender")
    table = [(read_name(kind), size) for kind, size in _CHILD.iter_unpack(content[2:at])]
    (names_bytes,) = struct.unpack_from(">H", content, at)
    names = bytes(content[at + 2 : at + 2 + names_bytes]).split(b"\0")
    at += 2 + names_bytes
    if len(names) <= count or at + sum(size for _, size in table) > len(content):
        raise PeerError(f"igtl: BIND of {count} messages with {len(content)} bytes does not hold them; mend the sender")
    children = []
    for (kind, size), name in zip(table, names, strict=False):
        if kind == "BIND" or not understands(kind):
            raise PeerError(f"igtl: BIND with a {kind!r} in it, which we do not take there; send it by itself")
        children.append((name.decode("utf-8", "replace"), _read(kind, content[at : at + size])))
        at += size + size % 2
    return Bind(tuple(children))


_TYPES: dict[type, tuple[str, Callable[[Any], _Parts], Callable[[memoryview], Content]]] = {
    images.Image: ("IMAGE", images.write_image, images.read_image),
    images.ImagePart: ("IMAGE", images.write_image, images.read_image),
    images.ImageInfos: ("IMGMETA", images.write_image_infos, images.read_image_infos),
    images.LabelInfos: ("LBMETA", images.write_label_infos, images.read_label_infos),
    words.Status: ("STATUS", words.write_status, words.read_status),
    words.Text: ("STRING", words.write_text, words.read_text),
    words.Sensor: ("SENSOR", words.write_sensor, words.read_sensor),
    tracking.Transform: ("TRANSFORM", tracking.write_transform, tracking.read_transform),
    tracking.Position: ("POSITION", tracking.write_position, tracking.read_position),
    tracking.TrackingData: ("TDATA", tracking.write_tracking, tracking.read_tracking),
    tracking.QuaternionData: ("QTDATA", tracking.write_quaternions, tracking.read_quaternions),
    geometry.Points: ("POINT", geometry.write_points, geometry.read_points),
    geometry.Trajectories: ("TRAJ", geometry.write_trajectories, geometry.read_trajectories),
    geometry.PolyData: ("POLYDATA", geometry.write_polydata, geometry.read_polydata),
    queries.Capability: ("CAPABILITY", queries.write_capability, queries.read_capability),
    Bind: ("BIND", _write_bind, _read_bind),
}
_READERS = {kind: read for kind, _, read in _TYPES.values()}
