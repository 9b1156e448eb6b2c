# SPDX-License-Identifier: Apache-2.0
"""A PACS to try with: keeps what comes in a buffer of its own, each object once."""

from __future__ import annotations

import threading
from pathlib import Path

from appliance.buffer import Buffer
from appliance.dicom import status
from appliance.dicom.acceptor import CALLED_UNKNOWN, Acceptor
from appliance.dicom.keep_instance import KeepInstance
from appliance.dicom.negotiation import Request
from appliance.dicom.services import Incoming, NRequest, NResponse


class Pacs:
    """The services of its listener."""

    def __init__(self, folder: Path) -> None:
        self._buffer = Buffer(folder)

    def store(self, incoming: Incoming) -> KeepInstance:
        """Keep it, and index it at once: `count` is another process."""
        return KeepInstance(self._buffer, incoming, lambda refused: None if refused else self._index())

    def _index(self) -> None:
        self._buffer.index()

    def normalized(self, request: NRequest) -> NResponse:
        """It knows none."""
        del request
        return NResponse(status.UNRECOGNIZED)

    def ended(self, association: str, *, released: bool) -> None:
        """Nothing to do."""


def serve_pacs(folder: Path, port: int, ae_title: str, bind: str = "127.0.0.1") -> Acceptor:
    """Listen in threads of this process; port 0 takes a free one (`.address[1]`), `.close()` ends it."""

    def refusal(request: Request, address: str) -> int | None:
        del address
        return CALLED_UNKNOWN if request.called_ae_title != ae_title else None

    return Acceptor((bind, port), Pacs(folder), refusal=refusal)


def run_pacs(folder: Path, port: int, ae_title: str, stop: threading.Event) -> None:
    """Be a PACS until `stop`. Being killed loses nothing that was acknowledged."""
    server = serve_pacs(folder, port, ae_title)
    try:
        stop.wait()
    finally:
        server.close()


def count(folder: Path) -> int:
    """How many different objects a PACS in `folder` holds; the same object sent twice counts once."""
    buffer = Buffer(folder)
    try:
        return int(buffer.counts()["received"])
    finally:
        buffer.close()
