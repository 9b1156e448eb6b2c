# SPDX-License-Identifier: Apache-2.0
"""One received instance on its way to disk: its file's header, then its data set as it arrives, then one fdatasync."""

from __future__ import annotations

import time
from collections.abc import Callable

from appliance.buffer import Buffer, NewInstance
from appliance.dicom import part10, status
from appliance.dicom.identity import uids_of
from appliance.dicom.services import Incoming
from appliance.errors import StorageError

Told = Callable[[str], None]  # what became of it: an empty text, or why it was refused


class KeepInstance:
    """A `services.Writer` into the buffer. Raises StorageError from the beginning on, having told so."""

    def __init__(self, buffer: Buffer, incoming: Incoming, told: Told) -> None:
        self._incoming, self._told = incoming, told
        self._begun = self._other = False
        try:
            self._writer = buffer.writer()
        except StorageError as error:
            told(str(error))
            raise
        self.close = self._writer.close

    def write(self, data: bytes | memoryview) -> None:
        """Append to the data set."""
        if not self._begun:
            self._begun = True
            one = self._incoming
            announced = one.sop_class_uid, one.sop_instance_uid
            self._other = uids_of(data, one.transfer_syntax_uid) not in (None, announced)
            self._write(part10.header(*announced, one.transfer_syntax_uid))
        self._write(data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._writer.write(data)
        except StorageError as error:
            self._told(str(error))
            raise

    def commit(self) -> int:
        """Keep it; durable when this gives success."""
        if self._other or not self._begun:
            self._told("receive: a data set is not what its command announced; it was refused, look at the sender")
            return status.DATASET_MISMATCH
        one = self._incoming
        uids = one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid
        instance = NewInstance(b"", *uids, origin="received", peer=one.calling_ae_title, association=one.association)
        try:
            self._writer.commit(instance, time.time())
        except StorageError as error:
            self._told(str(error))
            raise
        self._told("")
        return status.SUCCESS
