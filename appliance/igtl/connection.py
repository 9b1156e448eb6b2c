# SPDX-License-Identifier: Apache-2.0
"""One direction of an OpenIGTLink connection: bytes in, messages out, however the network cuts them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from appliance.errors import PeerError
from appliance.igtl.header import HEADER_BYTES, Header, checksum, read_header
from appliance.igtl.messages import Message, decode, understands

MAX_BODY_BYTES = 256 << 20  # a 512³ volume of uint16


@dataclass(frozen=True)
class Skipped:
    """A message that was passed over unread, by its length."""

    type: str
    body_bytes: int


class Connection:
    """Incremental parser. After a PeerError the stream is lost: hang up.

    Parameters
    ----------
    max_body_bytes
        A longer message is a PeerError before any of it is kept.
    wanted
        Message types to decode; None: all that we understand. Others are counted through and never kept.
    """

    def __init__(self, max_body_bytes: int = MAX_BODY_BYTES, wanted: Collection[str] | None = None) -> None:
        self._max_body_bytes = max_body_bytes
        self._wanted = wanted
        self._waiting = bytearray()
        self._header: Header | None = None
        self._to_skip = 0

    @property
    def is_between_messages(self) -> bool:
        """Whether the peer may hang up now without cutting a message."""
        return not self._waiting and self._header is None and not self._to_skip

    def receive(self, data: bytes) -> list[Message | Skipped]:
        """Take bytes from the peer and return the messages they complete."""
        self._waiting += data
        return list(self._events())

    def _events(self) -> Iterator[Message | Skipped]:
        while True:
            if self._to_skip:
                n_skipped = min(self._to_skip, len(self._waiting))
                del self._waiting[:n_skipped]
                self._to_skip -= n_skipped
            if self._header is None:
                if len(self._waiting) < HEADER_BYTES:
                    return
                self._begin(read_header(self._take(HEADER_BYTES)))
            header = self._header
            assert header is not None
            if not self._wants(header.type):
                self._header, self._to_skip = None, header.body_bytes
                yield Skipped(header.type, header.body_bytes)
            elif len(self._waiting) < header.body_bytes:
                return
            else:
                self._header = None
                yield self._finish(header, self._take(header.body_bytes))

    def _wants(self, kind: str) -> bool:
        return understands(kind) if self._wanted is None else kind in self._wanted

    def _begin(self, header: Header) -> None:
        if header.body_bytes > self._max_body_bytes:
            raise PeerError(
                f"igtl: {header.type} announces {header.body_bytes} bytes, at most {self._max_body_bytes} are taken; "
                "let the peer send smaller messages"
            )
        self._header = header

    def _finish(self, header: Header, body: bytes) -> Message:
        crc = checksum(body)
        if crc != header.crc:
            raise PeerError(
                f"igtl: {header.type} of {header.body_bytes} bytes has checksum {crc:#018x}, its header says "
                f"{header.crc:#018x}; look for a damaged link or let the peer compute the CRC"
            )
        return decode(header, body)

    def _take(self, n_bytes: int) -> bytes:
        data = bytes(memoryview(self._waiting)[:n_bytes])
        del self._waiting[:n_bytes]
        return data
