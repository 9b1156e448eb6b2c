# SPDX-License-Identifier: Apache-2.0
"""A PACS to try with: keeps what comes in a buffer of its own, each object once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from appliance.buffer import Buffer, NewInstance
from appliance.dicom import status
from appliance.dicom.storage_scp import Received, Server, serve


def serve_pacs(folder: Path, port: int, ae_title: str, bind: str = "127.0.0.1") -> Server:
    """Listen in threads of this process; port 0 takes a free one (`.server_address[1]`), `.shutdown()` ends it."""
    buffer = Buffer(folder)

    def keep(received: Received) -> int:
        uids = received.sop_class_uid, received.sop_instance_uid, received.transfer_syntax_uid
        buffer.put_instance(NewInstance(received.data, *uids, origin="received", peer=received.peer), time.time())
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
    buffer = Buffer(folder)
    try:
        return int(buffer.counts()["received"])
    finally:
        buffer.close()
