# SPDX-License-Identifier: Apache-2.0
"""What a received data set says about itself: the attributes that routing, queries and series need.

Rule: only the beginning is looked at, without recursion and without building anything; whatever the bytes are, the time
and the memory are bounded. Of pydicom only the names of character sets are used: its reader trusts what it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from pydicom.charset import python_encoding

from appliance.dicom.elements import ITEM, ITEM_END, SEQUENCE_END, UNDEFINED, header
from appliance.dicom.uids import BIG_ENDIAN, IMPLICIT

LONGEST_PREFIX = 1 << 20  # what comes before the pixels fits, but for the oddest
_LAST_GROUP = 0x0028
_DEEPEST = 64  # sequences in sequences
_LONGEST_VALUE = 1024

_CHARACTER_SET = 0x00080005

KEYWORDS = {
    0x00080008: "ImageType",
    0x00080020: "StudyDate",
    0x00080021: "SeriesDate",
    0x00080030: "StudyTime",
    0x00080031: "SeriesTime",
    0x00080050: "AccessionNumber",
    0x00080060: "Modality",
    0x00080070: "Manufacturer",
    0x00080080: "InstitutionName",
    0x00080090: "ReferringPhysicianName",
    0x00081010: "StationName",
    0x00081030: "StudyDescription",
    0x0008103E: "SeriesDescription",
    0x00081090: "ManufacturerModelName",
    0x00100010: "PatientName",
    0x00100020: "PatientID",
    0x00100030: "PatientBirthDate",
    0x00100040: "PatientSex",
    0x00180015: "BodyPartExamined",
    0x00180050: "SliceThickness",
    0x00181030: "ProtocolName",
    0x0020000D: "StudyInstanceUID",
    0x0020000E: "SeriesInstanceUID",
    0x00200010: "StudyID",
    0x00200011: "SeriesNumber",
    0x00200012: "AcquisitionNumber",
    0x00200013: "InstanceNumber",
    0x00200032: "ImagePositionPatient",
    0x00200052: "FrameOfReferenceUID",
    0x00200105: "NumberOfTemporalPositions",
    0x00201002: "ImagesInAcquisition",
    0x00209163: "InConcatenationTotalNumber",
    0x00280008: "NumberOfFrames",
    0x00280010: "Rows",
    0x00280011: "Columns",
}
_NUMBERS = {"Rows", "Columns", "InConcatenationTotalNumber"}  # US; everything else is text


class UnreadableError(Exception):
    """The bytes make no sense from here on."""


def describe(dataset: bytes | memoryview, transfer_syntax_uid: str) -> tuple[dict[str, str], str]:
    """Give the attributes in the beginning of an encoded data set by keyword, values of more than one joined by a
    backslash, and what is wrong with it (empty: nothing). What was read before the damage is given."""
    order = ">" if transfer_syntax_uid == BIG_ENDIAN else "<"
    values: dict[int, bytes] = {}
    problem = ""
    try:
        for tag, value in _top_level(bytes(dataset[:LONGEST_PREFIX]), order, transfer_syntax_uid == IMPLICIT):
            values[tag] = value
    except UnreadableError as error:
        problem = str(error)
    encoding = _encoding(values.get(_CHARACTER_SET, b""))
    attributes = {}
    for tag, keyword in KEYWORDS.items():
        if tag in values:
            read = _number(values[tag], order) if keyword in _NUMBERS else _text(values[tag], encoding)
            attributes[keyword] = read
    return attributes, problem


def _encoding(names: bytes) -> str:
    """Give the Python codec of Specific Character Set; of several, the last knows the escapes of the others."""
    term = names.decode("ascii", "replace").split("\\")[-1].strip()
    return str(python_encoding.get(term, "latin-1"))


def _text(value: bytes, encoding: str) -> str:
    text = "\\".join(one.strip(" \0") for one in value.decode(encoding, "replace").split("\\"))
    return "".join(character for character in text if character.isprintable())


def _number(value: bytes, order: str) -> str:
    return str(struct.unpack(f"{order}H", value)[0]) if len(value) == 2 else ""


def _top_level(data: bytes, order: str, implicit: bool) -> Iterator[tuple[int, bytes]]:
    """Give the wanted elements that are in no sequence. Raises UnreadableError."""
    offset, inside = 0, list[bool]()  # for each open sequence or item: is what is in it implicit
    while offset + 8 <= len(data):
        group, element = struct.unpack_from(f"{order}HH", data, offset)
        tag = group << 16 | element
        if tag in (ITEM, ITEM_END, SEQUENCE_END):
            (length,) = struct.unpack_from(f"{order}I", data, offset + 4)
            offset += 8
            if tag != ITEM:
                if not inside:
                    raise UnreadableError("a delimiter of no sequence")
                inside.pop()
            elif length == UNDEFINED:
                _go_in(inside, inside[-1] if inside else implicit)
            else:
                offset += length
            continue
        if group > _LAST_GROUP and not inside:
            return
        vr, start, length = _element(data, offset, order, inside[-1] if inside else implicit)
        if length == UNDEFINED:
            if group == 0x7FE0:
                return
            _go_in(inside, implicit or vr == b"UN")  # PS3.5 6.2.2 note 4
            offset = start
            continue
        if not inside and (tag in KEYWORDS or tag == _CHARACTER_SET):
            if start + length > len(data):
                raise UnreadableError(f"({group:04X},{element:04X}) is cut off")
            yield tag, data[start : start + min(length, _LONGEST_VALUE)]
        offset = start + length


def _go_in(inside: list[bool], implicit: bool) -> None:
    if len(inside) >= _DEEPEST:
        raise UnreadableError(f"sequences nested more than {_DEEPEST} deep")
    inside.append(implicit)


def _element(data: bytes, offset: int, order: str, implicit: bool) -> tuple[bytes, int, int]:
    try:
        vr, start, length = header(data, offset, order, implicit)
    except struct.error as error:
        raise UnreadableError("an element is cut off") from error
    if not implicit and not (vr.isalpha() and vr.isupper()):
        raise UnreadableError("an element without a value representation")
    return vr, start, length
