# SPDX-License-Identifier: Apache-2.0
"""What an acceptor offers its owner to do: keep instances, answer normalized requests, know when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Incoming:
    """One C-STORE as announced; UIDs are the peer's, but of digits and dots."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    calling_ae_title: str
    address: str
    association: str  # ours, unique


class Writer(Protocol):
    """Takes one encoded data set as it arrives."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes; the view is reused afterwards. Raises StorageError."""

    def commit(self) -> int:
        """Give the status to answer; a success only after the instance is on disk. Raises StorageError."""

    def close(self) -> None:
        """Keep nothing, unless it is committed."""


@dataclass(frozen=True)
class NRequest:
    """One DIMSE-N request (PS3.7 chapter 10) with its data set as it came."""

    command: int  # command field
    class_uid: str
    instance_uid: str
    type_id: int  # action type or event type
    data: bytes = field(repr=False)
    transfer_syntax_uid: str
    calling_ae_title: str
    address: str


@dataclass(frozen=True)
class NResponse:
    """What to answer. `instance_uid` where we chose one."""

    status: int
    data: bytes = field(default=b"", repr=False)
    instance_uid: str = ""
    error_id: int = 0  # what exactly failed, where the service class says so


class Services(Protocol):
    """Called from the thread of each association."""

    def store(self, incoming: Incoming) -> Writer:
        """Begin to keep one instance. Raises StorageError."""

    def normalized(self, request: NRequest) -> NResponse:
        """Answer one DIMSE-N request."""

    def ended(self, association: str, *, released: bool) -> None:
        """The association is over; not released: it was aborted or broke."""
