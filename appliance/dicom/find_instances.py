# SPDX-License-Identifier: Apache-2.0
"""Looks whether a peer has an instance: C-FIND at IMAGE level, Study Root (PS3.4 C.6.2), or QIDO-RS."""

from __future__ import annotations

from appliance.dicom.association import Association
from appliance.dicom.commitment import element, walk
from appliance.dicom.stow_client import StowConnection
from appliance.dicom.uids import IMPLICIT, to_bytes, to_text

CONTEXT = ("1.2.840.10008.5.1.4.1.2.2.1", IMPLICIT)
_SOP_INSTANCE, _LEVEL, _STUDY, _SERIES = 0x00080018, 0x00080052, 0x0020000D, 0x0020000E


def identifier(study_uid: str, series_uid: str, sop_instance_uid: str) -> bytes:
    """Encode the keys. The study and the series are part of a hierarchical query; empty: of any."""
    return (
        element(_SOP_INSTANCE, b"UI", to_bytes(sop_instance_uid), explicit=False)
        + element(_LEVEL, b"CS", b"IMAGE ", explicit=False)
        + element(_STUDY, b"UI", to_bytes(study_uid), explicit=False)
        + element(_SERIES, b"UI", to_bytes(series_uid), explicit=False)
    )


def has_instance(link: Association | StowConnection, study_uid: str, series_uid: str, sop_instance_uid: str) -> bool:
    """Whether the peer lists this very instance. Raises DeliveryError, PeerError."""
    if isinstance(link, StowConnection):
        return link.has_instance(study_uid, series_uid, sop_instance_uid)
    found = link.find(CONTEXT, identifier(study_uid, series_uid, sop_instance_uid))
    return any(
        tag == _SOP_INSTANCE and to_text(value) == sop_instance_uid
        for answer in found
        for tag, value in walk(answer, IMPLICIT, ())
    )
