# SPDX-License-Identifier: Apache-2.0
"""The receiver process: what comes in is on disk, in the inbox, before it is acknowledged."""

from __future__ import annotations

import threading
import time
from typing import Any

from appliance.buffer import Buffer, NewInstance
from appliance.dicom import status
from appliance.dicom.build_results import Alarm
from appliance.dicom.storage_scp import Received, serve
from appliance.errors import ConfigError, StorageError
from appliance.settings import Settings


class Receiver:
    """What the receiver process does."""

    def __init__(self, settings: Settings, alarm: Alarm) -> None:
        if settings.listen.dicom is None:
            raise ConfigError("receive: listen.dicom is not set; add it or run no receiver")
        self._listen, self._alarm = settings.listen.dicom, alarm
        self._buffer = Buffer(settings.site.data_dir, int(settings.buffer.reserve_gb * 1e9))
        self._received = self._refused = self.port = 0

    def run(self, stop: threading.Event) -> None:
        """Listen until `stop`."""
        try:
            server = serve(self._listen.bind, self._listen.port, self._listen.ae_title, self.keep)
        except OSError as error:
            text = f"receive: cannot listen on {self._listen.bind}:{self._listen.port}: {error.strerror}"
            raise ConfigError(f"{text}; check listen.dicom") from error
        self.port = server.server_address[1]
        try:
            stop.wait()
        finally:
            server.shutdown()

    def keep(self, received: Received) -> int:
        """Keep one instance; give the status to answer."""
        instance = NewInstance(
            received.data,
            received.sop_class_uid,
            received.sop_instance_uid,
            received.transfer_syntax_uid,
            origin="received",
            peer=received.peer,
        )
        try:
            kept = self._buffer.put_instance(instance, time.time())
        except StorageError as error:
            self._refused += 1
            self._alarm("receiver", str(error))
            return status.OUT_OF_RESOURCES
        self._received += 1
        self._alarm("receiver", "receive: one UID came with different bytes; both are kept" if kept.conflict else "")
        return status.SUCCESS

    def status(self) -> dict[str, Any]:
        """Plain values."""
        return {"received": self._received, "refused": self._refused, "port": self.port}

    def close(self) -> None:
        """Close the buffer, after `run`."""
        self._buffer.close()
