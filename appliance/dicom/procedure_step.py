# SPDX-License-Identifier: Apache-2.0
"""Modality Performed Procedure Step as SCP: N-CREATE and N-SET (PS3.4 annex F.7).

Kept: the status, and which images each performed series has. That is how a modality says that a series is whole.
"""

from __future__ import annotations

from appliance.buffer.mpps import FINAL, IN_PROGRESS, ProcedureSteps
from appliance.dicom import dimse, status
from appliance.dicom.commitment import walk
from appliance.dicom.elements import ITEM, ITEM_END
from appliance.dicom.negotiation import UID
from appliance.dicom.services import NRequest, NResponse
from appliance.dicom.uids import to_text
from appliance.errors import PeerError

_STATUS, _PERFORMED_SERIES, _SERIES_UID = 0x00400252, 0x00400340, 0x0020000E
_IMAGES, _IMAGE_UID = 0x00081140, 0x00081155
_IN_IMAGES = {0x00081150, _IMAGE_UID, ITEM, ITEM_END}
_NO_LONGER_UPDATED = 0xA710  # PS3.4 F.7.2.2.2
_ANSWER = {
    "done": status.SUCCESS,
    "exists": status.DUPLICATE_INSTANCE,
    "unknown": status.NO_SUCH_INSTANCE,
    "final": status.PROCESSING_FAILURE,
}


def read_step(data: bytes, transfer_syntax_uid: str) -> tuple[str, dict[str, list[str]]]:
    """Give (status, SOP Instance UIDs by Series Instance UID) of an N-CREATE or N-SET. Raises PeerError."""
    said, series = "", dict[str, list[str]]()
    performed = in_images = False
    images: list[str] = []
    for tag, value in walk(data, transfer_syntax_uid, (_PERFORMED_SERIES, _IMAGES)):
        in_images = tag == _IMAGES or (in_images and tag in _IN_IMAGES)
        if tag == _STATUS:
            said = to_text(value)
        elif tag == _PERFORMED_SERIES:
            performed = True
        elif performed and in_images and tag == _IMAGE_UID:
            images.append(to_text(value))  # its series is named after it: the tags are in order
        elif performed and tag == _SERIES_UID:
            if not UID.fullmatch(to_text(value)):
                raise PeerError("a performed series without a UID")
            series[to_text(value)], images = images, []
    if said not in ("", IN_PROGRESS, *FINAL):
        raise PeerError("a performed procedure step status that is none")
    return said, series


def take_step(steps: ProcedureSteps, request: NRequest, now: float) -> NResponse:
    """Answer one request. Raises PeerError, StorageError."""
    if not UID.fullmatch(request.instance_uid):
        return NResponse(status.INVALID_INSTANCE)
    said, series = read_step(request.data, request.transfer_syntax_uid)
    if request.command == dimse.N_CREATE_RQ:
        if said != IN_PROGRESS:
            return NResponse(status.INVALID_VALUE)
        outcome = steps.create(request.instance_uid, said, series, request.calling_ae_title, now)
    else:
        outcome = steps.change(request.instance_uid, said, series, now)
    return NResponse(_ANSWER[outcome], error_id=_NO_LONGER_UPDATED if outcome == "final" else 0)
