# SPDX-License-Identifier: Apache-2.0
"""CAPABILITY, the queries GET_, STT_ (start) and STP_ (stop), and RTS_, the answer to the latter two."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from appliance.igtl.words import name_bytes, read_name

_START = struct.Struct(">i32s")
_REPLY = struct.Struct(">b")
ACTIONS = ("GET_", "STT_", "STP_")


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


@dataclass(frozen=True)
class Reply:
    """RTS_…: whether what STT_… or STP_… asked for is done."""

    type: str
    ok: bool


@dataclass(frozen=True)
class Pace:
    """What STT_TDATA and STT_QTDATA ask for: at most one message in `resolution_ms`, in a named space."""

    resolution_ms: int = 0  # 0: as fast as they come
    coordinate_name: str = ""


def start(kind: str, pace: Pace) -> Query:
    """Return the query that starts `kind` ("TDATA", "QTDATA")."""
    return Query("STT", kind, _START.pack(pace.resolution_ms, name_bytes(pace.coordinate_name, 32)))


def read_pace(query: Query) -> Pace:
    """Return what a query asks for; the default where it has no body of that form."""
    if len(query.body) != _START.size:
        return Pace()
    resolution_ms, name = _START.unpack(query.body)
    return Pace(max(0, resolution_ms), read_name(name))


def write_capability(capability: Capability) -> tuple[bytes, ...]:
    """Return the content of CAPABILITY in parts."""
    return tuple(struct.pack("12s", name_bytes(kind, 12)) for kind in capability.types)


def read_capability(content: memoryview) -> Capability:
    """Return what the content of CAPABILITY says."""
    return Capability(tuple(read_name(name).rstrip() for (name,) in struct.iter_unpack("12s", content)))


def write_reply(reply: Reply) -> tuple[bytes, ...]:
    """Return the content of RTS_… in parts."""
    return (_REPLY.pack(0 if reply.ok else 1),)


def read_reply(kind: str, content: memoryview) -> Reply:
    """Return what the content of RTS_… says."""
    return Reply(kind, _REPLY.unpack_from(content) == (0,))
