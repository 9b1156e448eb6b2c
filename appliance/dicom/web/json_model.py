# SPDX-License-Identifier: Apache-2.0
"""Search keys and results of QIDO-RS as DICOM JSON (PS3.18 annex F and 10.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from appliance.buffer.search import MOST, Found, Level
from appliance.dicom.describe import KEYWORDS
from appliance.errors import PeerError

_TAGS = {keyword: f"{tag:08X}" for tag, keyword in KEYWORDS.items()}
_VR = {
    **dict.fromkeys(("ImageType", "Modality", "PatientSex", "BodyPartExamined"), "CS"),
    **dict.fromkeys(("StudyDate", "SeriesDate", "PatientBirthDate"), "DA"),
    **dict.fromkeys(("StudyTime", "SeriesTime"), "TM"),
    **dict.fromkeys(("AccessionNumber", "StationName", "StudyID"), "SH"),
    **dict.fromkeys(("ReferringPhysicianName", "PatientName"), "PN"),
    **dict.fromkeys(("StudyInstanceUID", "SeriesInstanceUID"), "UI"),
    **dict.fromkeys(("SeriesNumber", "AcquisitionNumber", "InstanceNumber", "NumberOfTemporalPositions"), "IS"),
    **dict.fromkeys(("ImagesInAcquisition", "NumberOfFrames"), "IS"),
    **dict.fromkeys(("Rows", "Columns"), "US"),
    "SliceThickness": "DS",
}
# What is searched for too, and is no attribute of the description (PS3.18 table 10.6.1-5)
_OTHER_KEYS = {"SOPClassUID": "00080016", "SOPInstanceUID": "00080018", "ModalitiesInStudy": "00080061"}
_STUDY = {
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID"),
    *("PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDescription"),
}
_OF_INSTANCE = {
    *("ImageType", "InstanceNumber", "AcquisitionNumber", "NumberOfFrames", "Rows", "Columns"),
    *("NumberOfTemporalPositions", "ImagesInAcquisition", "SliceThickness"),
}


def wanted_keywords(items: Sequence[tuple[str, str]]) -> tuple[dict[str, str], int, int]:
    """Give (value by keyword, offset, limit) of a query. Raises PeerError."""
    wanted: dict[str, str] = {}
    numbers = {"offset": 0, "limit": 100}
    known = _TAGS | _OTHER_KEYS
    tags = {tag: keyword for keyword, tag in known.items()}
    for key, value in items:
        if key in numbers:
            if not value.isascii() or not value.isdigit() or len(value) > 9:
                raise PeerError(f"{key} must be a number, got {value[:20]!r}")
            numbers[key] = int(value)
        elif key in ("includefield", "fuzzymatching"):
            continue  # everything that is known is given; names match as they are
        elif key in known or key.upper() in tags:
            wanted[key if key in known else tags[key.upper()]] = value
        else:
            raise PeerError(f"{key[:40]!r} cannot be searched for here; known: {', '.join(sorted(known))}")
    return wanted, numbers["offset"], min(numbers["limit"], MOST)


def instance_json(found: Found, level: Level, base_url: str) -> dict[str, Any]:
    """Give one result; `base_url` is what the client knows us by."""
    model: dict[str, Any] = {}
    for keyword, tag in _TAGS.items():
        if keyword not in found.attributes or (level == "studies" and keyword not in _STUDY):
            continue
        if level == "series" and keyword in _OF_INSTANCE:
            continue
        model[tag] = _element(_VR.get(keyword, "LO"), found.attributes[keyword])
    model["00081190"] = {"vr": "UR", "Value": [base_url + _path(found, level)]}
    if level == "studies":
        model["00080061"] = _element("CS", found.modalities)
        model["00201206"] = {"vr": "IS", "Value": [found.n_series]}
        model["00201208"] = {"vr": "IS", "Value": [found.n_instances]}
    elif level == "series":
        model["00201209"] = {"vr": "IS", "Value": [found.n_instances]}
    else:
        model["00080016"] = {"vr": "UI", "Value": [found.sop_class_uid]}
        model["00080018"] = {"vr": "UI", "Value": [found.sop_instance_uid]}
    return dict(sorted(model.items()))


def _path(found: Found, level: Level) -> str:
    study, series = (quote(found.attributes.get(f"{one}InstanceUID", ""), safe="") for one in ("Study", "Series"))
    path = f"studies/{study}" if level == "studies" else f"studies/{study}/series/{series}"
    return f"{path}/instances/{found.sop_instance_uid}" if level == "instances" else path


def _element(vr: str, text: str) -> dict[str, Any]:
    values = [value for value in text.split("\\") if value]
    if not values:
        return {"vr": vr}
    if vr == "PN":
        names = ("Alphabetic", "Ideographic", "Phonetic")
        return {"vr": vr, "Value": [dict(zip(names, value.split("="), strict=False)) for value in values]}
    return {"vr": vr, "Value": [_number(vr, value) for value in values]}


def _number(vr: str, value: str) -> Any:
    if vr not in ("IS", "DS", "US"):
        return value
    try:
        return float(value) if vr == "DS" else int(value)
    except ValueError:
        return value  # it is what the instance says
