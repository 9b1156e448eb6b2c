# SPDX-License-Identifier: Apache-2.0
"""A PACS to try with: stores what comes into a folder, each object once, named by its content."""

from __future__ import annotations

import threading
from pathlib import Path

from appliance.buffer.objects import ObjectFolder
from appliance.dicom import status
from appliance.dicom.storage_scp import Received, Server, serve


def serve_pacs(folder: Path, port: int, ae_title: str, bind: str = "127.0.0.1") -> Server:
    """Listen in threads of this process; port 0 takes a free one (`.server_address[1]`), `.shutdown()` ends it."""
    objects = ObjectFolder(folder / "objects")

    def keep(received: Received) -> int:
        objects.write([received.data])
        return status.SUCCESS

    return serve(bind, port, ae_title, keep)


def run_pacs(folder: Path, port: int, ae_title: str, stop: threading.Event) -> None:
    """Be a PACS until `stop`. Being killed loses nothing that was acknowledged."""
    server = serve_pacs(folder, port, ae_title)
    try:
        stop.wait()
    finally:
        server.shutdown()


def count(folder: Path) -> int:
    """How many different objects a PACS in `folder` holds; the same object sent twice counts once."""
    return sum(path.is_file() for path in (folder / "objects").glob("*"))
