# SPDX-License-Identifier: Apache-2.0
"""One direction of an OpenIGTLink connection: bytes in, messages out, however the network cuts them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from appliance.errors import PeerError
from appliance.igtl.header import HEADER_BYTES, Header, checksum, read_header
from appliance.igtl.messages import Message, decode, understands

MAX_BODY_BYTES = 256 << 20  # a 512³ volume of uint16
_BULK = {"IMAGE", "POLYDATA", "BIND"}
_MAX_PLAIN_BYTES = 1 << 20  # of any other message: 15,000 tools, 7,700 landmarks
_SCRATCH_BYTES = 64 << 10


@dataclass(frozen=True)
class Skipped:
    """A message that was passed over unread, by its length."""

    type: str
    body_bytes: int


class Connection:
    """Incremental parser. After a PeerError the stream is lost: hang up.

    Bytes come by `receive`, or without a copy: read them into `room()` and say how many with `received`. Good
    messages in front of a bad one are returned; then `fault` says what is wrong, and the next call raises it.

    Parameters
    ----------
    max_body_bytes
        A longer message is a PeerError before any of it is kept; 1 MiB for types that never are long.
    wanted
        Message types to decode, or their first four letters ("GET_"); None: all that we understand. Others are
        counted through and never kept.
    """

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES, wanted: Collection[str] | None = None) -> None:
        self._max_body_bytes = max_body_bytes
        self._wanted = wanted
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._n_scratch = 0  # bytes of it that wait for the rest of a header
        self._header: Header | None = None  # of the message whose body is on its way into `_body`
        self._body = memoryview(b"")
        self._n_body = 0
        self._to_skip = 0
        self.fault: PeerError | None = None

    @property
    def is_between_messages(self) -> bool:
        """Whether the peer may hang up now without cutting a message."""
        return not self._n_scratch and self._header is None and not self._to_skip

    def receive(self, data: bytes | memoryview) -> list[Message | Skipped]:
        """Take bytes from the peer and return the messages they complete."""
        events, rest = self.received(0), memoryview(data)
        while len(rest) and self.fault is None:
            room = self.room()
            n_bytes = min(len(room), len(rest))
            room[:n_bytes] = rest[:n_bytes]
            rest = rest[n_bytes:]
            self._take(n_bytes, events)
        self._raise_unless(events)
        return events

    def room(self) -> memoryview:
        """Return where the peer's next bytes go: the rest of a long body, or any bytes."""
        return self._scratch[self._n_scratch :] if self._header is None else self._body[self._n_body :]

    def received(self, n_bytes: int) -> list[Message | Skipped]:
        """Take the first `n_bytes` of `room()` and return the messages they complete."""
        events: list[Message | Skipped] = []
        if self.fault is None:
            self._take(n_bytes, events)
        self._raise_unless(events)
        return events

    def _raise_unless(self, events: list[Message | Skipped]) -> None:
        if self.fault is not None and not events:
            raise self.fault

    def _take(self, n_bytes: int, events: list[Message | Skipped]) -> None:
        try:
            if self._header is None:
                self._parse(self._scratch[: self._n_scratch + n_bytes], events)
            else:
                self._n_body += n_bytes
                if self._n_body == len(self._body):
                    header, body = self._header, self._body
                    self._header, self._body = None, memoryview(b"")
                    events.append(_finish(header, body))
        except PeerError as error:
            self.fault = error

    def _parse(self, data: memoryview, events: list[Message | Skipped]) -> None:
        at = 0
        while True:
            n_skipped = min(self._to_skip, len(data) - at)
            at, self._to_skip = at + n_skipped, self._to_skip - n_skipped
            if len(data) - at < HEADER_BYTES:
                break
            header = read_header(data[at : at + HEADER_BYTES])
            at += HEADER_BYTES
            self._check_length(header)
            if not self._wants(header.type):
                self._to_skip = header.body_bytes
                events.append(Skipped(header.type, header.body_bytes))
            elif len(data) - at >= header.body_bytes:
                events.append(_finish(header, memoryview(bytes(data[at : at + header.body_bytes]))))
                at += header.body_bytes
            else:
                self._header, self._body = header, memoryview(bytearray(header.body_bytes))
                self._n_body = len(data) - at
                self._body[: self._n_body] = data[at:]
                at = len(data)
                break
        self._n_scratch = len(data) - at
        self._scratch[: self._n_scratch] = bytes(data[at:])

    def _wants(self, kind: str) -> bool:
        wanted = self._wanted is None or kind in self._wanted or kind[:4] in self._wanted
        return wanted and understands(kind)

    def _check_length(self, header: Header) -> None:
        bulk = header.type in _BULK or not self._wants(header.type)
        limit = self._max_body_bytes if bulk else min(self._max_body_bytes, _MAX_PLAIN_BYTES)
        if header.body_bytes > limit:
            raise PeerError(
                f"igtl: {header.type} announces {header.body_bytes} bytes, at most {limit} are taken; "
                "let the peer send smaller messages"
            )


def _finish(header: Header, body: memoryview) -> Message:
    crc = checksum(body)
    if crc != header.crc:
        raise PeerError(
            f"igtl: {header.type} of {header.body_bytes} bytes has checksum {crc:#018x}, its header says "
            f"{header.crc:#018x}; look for a damaged link or let the peer compute the CRC"
        )
    return decode(header, body)
