# SPDX-License-Identifier: Apache-2.0
"""A recording: the bytes that a live source sent over one connection, and when each piece of them came.

A file is a magic and then parts, each with a head of 24 bytes: CRC-32, kind, nanoseconds since the start, length of
the data. The first part is the header (JSON), the last one the end mark; pieces lie between. The CRC goes over the
rest of the head, the data and the CRC of the part before, so that a part which is missing shows too. A file without
end mark was cut by a kill or a full disk: what is whole of it can be replayed. Rule: no sockets here, and lengths are
checked before anything is allocated for them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal

from pydantic import Field, ValidationError

from appliance.errors import RecordingError
from appliance.settings import Model, Name

MAGIC = b"nearrec1"
MAX_PIECE_BYTES = 16 << 20
HEAD_BYTES = 24
_CHECKED = struct.Struct("<IQQ")  # kind, nanoseconds since the start, length of the data
_MAX_TEXT_BYTES = 4096  # header, reason of the end
_MAX_NS = 10 * 366 * 24 * 3600 * 10**9  # nobody records for ten years

Protocol = Literal["mrd", "openigtlink"]


class Kind(IntEnum):
    """What a part is."""

    HEADER, PIECE, END = 1, 2, 3


class Header(Model):
    """Who sent, over which protocol, to which pipeline, and since when."""

    protocol: Protocol
    pipeline: Name
    peer: str = Field(max_length=300, pattern=r"^\P{C}*$")  # an address; nothing that moves a terminal's cursor
    started_ns: int = Field(ge=0, lt=1 << 63)  # UTC since 1970


@dataclass(frozen=True)
class Piece:
    """Bytes as one call to the socket gave them; `since_ns` counts from the header's start, CLOCK_MONOTONIC."""

    since_ns: int
    data: bytes


def encode_head(kind: Kind, since_ns: int, data: bytes, crc_before: int) -> tuple[bytes, int]:
    """Return the head of a part whose data are `data`, and its CRC; the header's `crc_before` is 0."""
    checked = _CHECKED.pack(kind, since_ns, len(data))
    crc = zlib.crc32(data, zlib.crc32(checked, crc_before))
    return struct.pack("<I", crc) + checked, crc


class Recording:
    """A recording opened for reading: its `header`; `pieces` may be read once.

    After that `cut` says why it is not the whole connection, or is empty.

    Raises
    ------
    RecordingError
        The file cannot be read or is no recording.
    """

    def __init__(self, path: Path) -> None:
        self.cut = ""
        self._name = path.name
        self._crc = self._since_ns = self._n_parts = 0
        self._position = len(MAGIC)
        try:
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise RecordingError(f"recording {self._name!r}: cannot be read: {error.strerror}") from error
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise RecordingError(
                    f"recording {self._name!r}: does not begin as one; choose a file that `recordings` lists"
                )
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def pieces(self) -> Iterator[Piece]:
        """Give what is whole. Raises RecordingError at the first part that is damaged."""
        while (part := self._read_part()) is not None:
            kind, data = part
            if kind == Kind.END:
                self.cut = self._read_reason(data)
                if self._file.read(1):
                    raise self._damaged("more follows its end mark")
                return
            if kind != Kind.PIECE:
                raise self._damaged(f"its kind is {kind}")
            yield Piece(self._since_ns, data)
        self.cut = f"the file ends inside part {self._n_parts + 1}: nearscan was killed, or the disk was full"

    def _read_header(self) -> Header:
        part = self._read_part()
        if part is None:
            raise RecordingError(f"recording {self._name!r}: ends inside its header; nothing of it can be replayed")
        kind, data = part
        if kind != Kind.HEADER:
            raise self._damaged(f"its kind is {kind}, not that of a header")
        try:
            return Header.model_validate_json(data)
        except ValidationError as error:
            where = ".".join(str(key) for key in error.errors()[0]["loc"]) or "JSON"
            raise self._damaged(f"the header's {where} makes no sense") from error

    def _read_part(self) -> tuple[int, bytes] | None:
        """Return kind and data of the next part, or None when the file ends within it."""
        head = self._read(HEAD_BYTES)
        if len(head) < HEAD_BYTES:
            return None
        kind, since_ns, n_bytes = _CHECKED.unpack_from(head, 4)
        most = MAX_PIECE_BYTES if kind == Kind.PIECE else _MAX_TEXT_BYTES
        if n_bytes > most:
            raise self._damaged(f"it says it has {n_bytes} bytes, and {most} are the most")
        data = self._read(n_bytes)
        if len(data) < n_bytes:
            return None
        crc = zlib.crc32(data, zlib.crc32(head[4:], self._crc))
        said = int.from_bytes(head[:4], "little")
        if crc != said:
            raise self._damaged(f"its checksum is {crc:#010x}, and it says {said:#010x}")
        if not self._since_ns <= since_ns <= _MAX_NS:
            raise self._damaged(f"its time is {since_ns} ns, after {self._since_ns} ns")
        self._crc, self._since_ns = crc, since_ns
        self._n_parts += 1
        self._position += HEAD_BYTES + n_bytes
        return kind, data

    def _read(self, n_bytes: int) -> bytes:
        try:
            return self._file.read(n_bytes)
        except OSError as error:
            raise self._damaged(f"cannot be read: {error.strerror}") from error

    def _read_reason(self, data: bytes) -> str:
        reason = data.decode("utf-8", "replace")
        if not (reason.isprintable() or not reason):
            raise self._damaged("the reason in its end mark is no text")
        return reason

    def _damaged(self, what: str) -> RecordingError:
        return RecordingError(
            f"recording {self._name!r}: part {self._n_parts + 1}, at byte {self._position}, is damaged: {what}; "
            "what comes before it can be replayed"
        )
