# SPDX-License-Identifier: Apache-2.0
"""multipart/related as it arrives (RFC 2046 5.1, RFC 2387): a parser without sockets that never holds a part.

Rule: what it keeps is bounded by the limits below, and a body that breaks the format is a PeerError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message

from appliance.errors import PeerError

MOST_PARTS = 100_000
_LONGEST_BOUNDARY = 200  # RFC 2046 says 70; Orthanc's have 73
_LONGEST_HEAD = 8192  # of one part
_LONGEST_PREAMBLE = 65536


@dataclass(frozen=True)
class Part:
    """A part begins; its content type without parameters, lower case."""

    content_type: str


@dataclass(frozen=True)
class Data:
    """More bytes of the part."""

    data: bytes


@dataclass(frozen=True)
class PartEnd:
    """The part is over."""


Event = Part | Data | PartEnd


def boundary_of(content_type: str) -> tuple[str, bytes]:
    """Give the `type` and the boundary of a multipart/related content type. Raises PeerError."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_type() != "multipart/related":
        raise PeerError(f"the content type must be multipart/related, got {message.get_content_type()!r}")
    try:
        boundary, inner = message.get_boundary(), str(message.get_param("type", ""))
    except (TypeError, ValueError, LookupError) as error:  # continued and encoded parameters (RFC 2231) that are none
        raise PeerError("the parameters of the content type cannot be read") from error
    if not boundary or len(boundary) > _LONGEST_BOUNDARY or not boundary.isascii():
        raise PeerError("the content type lacks a boundary, or it is too long")
    return inner.lower(), boundary.encode("ascii")


class MultipartParser:
    """Feed it bytes of any size; it gives events. `close` says whether the body was whole."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # so that the first delimiter is like the others
        self._state = "preamble"
        self._n_parts = 0
        self._n_preamble = 0

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take bytes, give what they complete. Raises PeerError."""
        self._buffer += data
        step = {"preamble": self._preamble, "delimiter": self._delimited, "head": self._head, "body": self._body}
        while self._state != "done":
            before = self._state, len(self._buffer)
            event = step[self._state]()
            if event is not None:
                yield event
            if (self._state, len(self._buffer)) == before:
                return
        self._buffer.clear()  # an epilogue means nothing

    def close(self) -> None:
        """Raises PeerError when the last delimiter did not come."""
        if self._state != "done":
            raise PeerError("the multipart body ends before its last delimiter")

    def _preamble(self) -> Event | None:
        at = self._buffer.find(self._delimiter)
        n_gone = at + len(self._delimiter) if at >= 0 else max(0, len(self._buffer) - len(self._delimiter))
        self._n_preamble += n_gone
        if self._n_preamble > _LONGEST_PREAMBLE:
            raise PeerError("the multipart body does not begin with its boundary")
        del self._buffer[:n_gone]
        if at >= 0:
            self._state = "delimiter"
        return None

    def _delimited(self) -> Event | None:
        """What follows a boundary: two dashes and the end, or white space and a part."""
        if len(self._buffer) < 2:
            return None
        if self._buffer.startswith(b"--"):
            self._state = "done"
            return None
        line = self._buffer.find(b"\r\n")
        if line > 100 or (line < 0 and len(self._buffer) > 100):
            raise PeerError("a multipart boundary is not followed by a line end")
        if line >= 0:
            if self._buffer[:line].strip(b" \t"):
                raise PeerError("a multipart boundary is followed by something else")
            del self._buffer[:line]  # the line end stays: a part may have no header
            self._state = "head"
        return None

    def _head(self) -> Event | None:
        at = self._buffer.find(b"\r\n\r\n")
        if at < 0 or at > _LONGEST_HEAD:
            if len(self._buffer) > _LONGEST_HEAD:
                raise PeerError(f"the headers of a part have more than {_LONGEST_HEAD} bytes")
            return None
        self._n_parts += 1
        if self._n_parts > MOST_PARTS:
            raise PeerError(f"the body has more than {MOST_PARTS} parts")
        lines = bytes(self._buffer[:at]).decode("latin-1").split("\r\n")
        del self._buffer[: at + 2]  # the empty line's end stays: the part may be empty
        self._state, self._first = "body", True
        named = (line.partition(":") for line in lines)
        types = [value for name, _, value in named if name.strip().lower() == "content-type"]
        return Part(types[0].partition(";")[0].strip().lower() if types else "")

    def _body(self) -> Event | None:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            n_sure = len(self._buffer) - len(self._delimiter) + 1
            return self._data(n_sure) if n_sure > (2 if self._first else 0) else None
        if at > (2 if self._first else 0):
            return self._data(at)
        del self._buffer[: at + len(self._delimiter)]
        self._state = "delimiter"
        return PartEnd()

    def _data(self, n_bytes: int) -> Data:
        start = 2 if self._first else 0
        self._first = False
        data = bytes(self._buffer[start:n_bytes])
        del self._buffer[:n_bytes]
        return Data(data)
