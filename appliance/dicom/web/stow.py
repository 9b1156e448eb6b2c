# SPDX-License-Identifier: Apache-2.0
"""STOW-RS: the parts of one request on their way to disk (PS3.18 10.5). Blocking: run it beside the event loop.

Rule: a part is kept as its data set came, and is reported as stored only after it is on disk; one that is cut off is
not kept. Of a part only the beginning is held, until it has said what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.buffer import Buffer, ObjectError
from appliance.dicom import negotiation, part10, status
from appliance.dicom.describe import describe
from appliance.dicom.identity import uids_of
from appliance.dicom.keep_instance import KeepInstance
from appliance.dicom.services import Incoming
from appliance.dicom.web.multipart import Data, MultipartParser, Part, PartEnd
from appliance.errors import PeerError, StorageError

_PREFIX = 1 << 18  # what a part must have said within, if it is longer
_MOST_REPORTED = 10_000
NOT_DICOM, OTHER_STUDY, SYNTAX_NOT_TAKEN = 0xC000, 0xA900, 0xC122  # PS3.18 table I.2-2

_CLASS, _UID, _REASON = "00081150", "00081155", "00081197"
_STORED, _FAILED = "00081199", "00081198"


class StowRequest:
    """One request. `feed` its body, then `finish`; `abandon` where it broke off."""

    def __init__(
        self, buffer: Buffer, boundary: bytes, study_uid: str, address: str, told: Callable[[str], None]
    ) -> None:
        self._buffer, self._study_uid, self._address, self._told = buffer, study_uid, address, told
        self._parser = MultipartParser(boundary)
        self._stored: list[tuple[str, str]] = []
        self._failed: list[tuple[str, str, int]] = []
        self._prefix = bytearray()
        self._writer: KeepInstance | None = None
        self._refusal: tuple[str, str, int] | None = None
        self._uids = ("", "")
        self._is_dicom = False

    def feed(self, data: bytes) -> None:
        """Take more of the body. Raises PeerError when it is no multipart body."""
        for event in self._parser.feed(data):
            if isinstance(event, Part):
                self._prefix, self._writer, self._refusal, self._uids = bytearray(), None, None, ("", "")
                self._is_dicom = event.content_type in ("application/dicom", "")
            elif isinstance(event, Data):
                self._take(event.data)
            elif isinstance(event, PartEnd):
                self._end()

    def finish(self) -> None:
        """The body is here. Raises PeerError when it was cut off."""
        self._parser.close()

    def abandon(self) -> None:
        """Keep nothing of the part that was on its way."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _take(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        if self._writer is None:
            self._prefix += data
            if len(self._prefix) >= _PREFIX:
                self._begin()
        else:
            self._write(data)

    def _begin(self) -> None:
        """The beginning is here, or all of it: what is it?"""
        try:
            parts = part10.split(self._prefix)
        except ObjectError:
            self._refusal = ("", "", NOT_DICOM)
            return
        self._uids = uids_of(parts.dataset, parts.transfer_syntax_uid) or (parts.sop_class_uid, parts.sop_instance_uid)
        reason = self._reason_against(parts)
        if reason:
            self._refusal = (*self._uids, reason)
            return
        incoming = Incoming(*self._uids, parts.transfer_syntax_uid, "STOW-RS", self._address, "")
        try:
            self._writer = KeepInstance(self._buffer, incoming, self._told)
        except StorageError:
            self._refusal = (*self._uids, status.OUT_OF_RESOURCES)
            return
        self._write(parts.dataset)

    def _reason_against(self, parts: part10.Parts) -> int:
        if parts.transfer_syntax_uid in negotiation.DEFLATED:
            return SYNTAX_NOT_TAKEN
        if not all(negotiation.UID.fullmatch(uid) for uid in (*self._uids, parts.transfer_syntax_uid)):
            return NOT_DICOM
        if not negotiation.is_storage(self._uids[0]):
            return status.SOP_CLASS_NOT_SUPPORTED
        if self._study_uid:
            attributes, _ = describe(parts.dataset, parts.transfer_syntax_uid)
            if attributes.get("StudyInstanceUID") != self._study_uid:
                return OTHER_STUDY
        return 0

    def _write(self, data: bytes | memoryview) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write(data)
        except StorageError:
            self.abandon()
            self._refusal = (*self._uids, status.OUT_OF_RESOURCES)

    def _end(self) -> None:
        if not self._is_dicom:
            self._refusal = ("", "", NOT_DICOM)
        elif self._writer is None and self._refusal is None:
            self._begin()
        if self._writer is not None:
            self._commit(self._writer)
        if self._refusal is not None:
            self.abandon()
            self._failed.append(self._refusal)
        if len(self._failed) > _MOST_REPORTED:
            raise PeerError(f"more than {_MOST_REPORTED} parts are no DICOM instances")

    def _commit(self, writer: KeepInstance) -> None:
        try:
            answer = writer.commit()
        except StorageError:
            answer = status.OUT_OF_RESOURCES
        if answer == status.SUCCESS:
            self._stored.append(self._uids)
        else:
            self._refusal = (*self._uids, answer)
        self.abandon()

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Give the HTTP status and the Store Instances Response (PS3.18 10.5.3)."""
        body: dict[str, Any] = {}
        if self._stored:
            body[_STORED] = {"vr": "SQ", "Value": [reference(*uids) for uids in self._stored]}
        if self._failed:
            items = [{**reference(*uids), _REASON: {"vr": "US", "Value": [reason]}} for *uids, reason in self._failed]
            body[_FAILED] = {"vr": "SQ", "Value": items}
        if not self._failed:
            return (200, body) if self._stored else (400, body)
        if self._stored:
            return 202, body
        full = all(reason == status.OUT_OF_RESOURCES for *_, reason in self._failed)
        return (507 if full else 409), body


def reference(sop_class_uid: str, sop_instance_uid: str) -> dict[str, Any]:
    """Give a reference to an instance as DICOM JSON (PS3.18 annex F)."""
    return {
        _CLASS: {"vr": "UI", "Value": [sop_class_uid]} if sop_class_uid else {"vr": "UI"},
        _UID: {"vr": "UI", "Value": [sop_instance_uid]} if sop_instance_uid else {"vr": "UI"},
    }
