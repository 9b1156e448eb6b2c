# SPDX-License-Identifier: Apache-2.0
"""STATUS, STRING and SENSOR: what people read, and plain readings; and the fixed-width names of all messages."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError

_STATUS = struct.Struct(">Hq20s")
_TEXT = struct.Struct(">HH")
_SENSOR = struct.Struct(">BBQ")
ASCII, UTF8 = 3, 106  # IANA MIBenum
ASCII_NAME = r"^[ -~]*$"  # of our own device names: as many bytes as letters
_LONGEST_TEXT = 65535

# STATUS codes of the standard that we use
OK, NOT_FOUND, BUSY, CONNECTION_LOST, NOT_READY, HARDWARE_FAILURE, SHUTTING_DOWN = 1, 4, 6, 7, 13, 18, 19


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
class Sensor:
    """SENSOR: up to 255 readings, float64, in the unit that the 64 bits of `unit` code (igtl_unit.h)."""

    values: NDArray[np.float64]
    unit: int = 0
    status: int = 0  # reserved


def fit(text: str, n_bytes: int) -> bytes:
    """Return `text` as UTF-8 of at most `n_bytes`, cut between characters."""
    data = text.encode("utf-8")
    return data if len(data) <= n_bytes else data[:n_bytes].decode("utf-8", "ignore").encode("utf-8")


def name_bytes(name: str, n_bytes: int = 20) -> bytes:
    """Return a name as UTF-8. Raises ValueError where it is too long: cut names could mean somebody else."""
    data = name.encode("utf-8")
    if len(data) > n_bytes or b"\0" in data:
        raise ValueError(f"encode: the name {name!r} has {len(data)} bytes, {n_bytes} fit; shorten it")
    return data


def read_name(data: bytes) -> str:
    """Return the text before the first NUL."""
    return data.split(b"\0", 1)[0].decode("utf-8", "replace")


def write_status(status: Status) -> tuple[bytes, ...]:
    """Return the content of STATUS in parts."""
    head = _STATUS.pack(status.code, status.subcode, fit(status.name, 20))
    return head, status.text.encode("utf-8"), b"\0"


def read_status(content: memoryview) -> Status:
    """Return what the content of STATUS says."""
    code, subcode, name = _STATUS.unpack_from(content)
    return Status(code, read_name(name), read_name(bytes(content[_STATUS.size :])), subcode)


def write_text(text: Text) -> tuple[bytes, ...]:
    """Return the content of STRING in parts."""
    data = fit(text.text, _LONGEST_TEXT)
    return _TEXT.pack(ASCII if data.isascii() else UTF8, len(data)), data


def read_text(content: memoryview) -> Text:
    """Return what the content of STRING says."""
    _, length = _TEXT.unpack_from(content)
    if 4 + length > len(content):
        raise PeerError(f"igtl: STRING of {length} bytes runs over its content of {len(content)}; mend the sender")
    return Text(bytes(content[4 : 4 + length]).decode("utf-8", "replace"))


def write_sensor(sensor: Sensor) -> tuple[bytes, ...]:
    """Return the content of SENSOR in parts."""
    values = np.asarray(sensor.values, ">f8")
    if values.ndim != 1 or len(values) > 255:
        raise ValueError(f"encode: SENSOR holds up to 255 readings, got an array of shape {values.shape}")
    return _SENSOR.pack(len(values), sensor.status, sensor.unit), values.tobytes()


def read_sensor(content: memoryview) -> Sensor:
    """Return what the content of SENSOR says."""
    count, status, unit = _SENSOR.unpack_from(content)
    if len(content) != _SENSOR.size + 8 * count:
        raise PeerError(f"igtl: SENSOR of {count} readings in a content of {len(content)} bytes; mend the sender")
    values = np.frombuffer(content, ">f8", offset=_SENSOR.size).astype(np.float64)
    return Sensor(values, unit, status)
