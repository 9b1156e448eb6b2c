# SPDX-License-Identifier: Apache-2.0
"""Headers of elements, as pydicom writes them; UIDs as text and as bytes."""

import struct

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import Tag
from pydicom.valuerep import VR

from appliance.dicom.elements import header
from appliance.dicom.uids import to_bytes, to_text

N_BYTES = 0x0102  # its bytes tell the order
BEFORE = b"abc"  # an element begins anywhere
every_vr = pytest.mark.parametrize("vr", sorted(str(vr) for vr in VR if len(vr) == 2))


def written(vr, order="<", implicit=False):
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = order == "<", implicit
    element = RawDataElement(Tag(0x00091002), vr, N_BYTES, bytes(N_BYTES), 0, implicit, order == "<")
    write_data_element(out, element)
    return out.getvalue()


@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
@pytest.mark.parametrize(("order", "implicit"), [("<", False), (">", False), ("<", True)])
@every_vr
def test_a_header_is_read_as_pydicom_writes_it(vr, order, implicit, kind):
    data = BEFORE + written(vr, order, implicit)
    found = header(kind(data), len(BEFORE), order, implicit)
    assert found == (b"" if implicit else vr.encode(), len(data) - N_BYTES, N_BYTES)


@pytest.mark.parametrize("implicit", [False, True])
@every_vr
def test_a_header_that_is_cut_off_is_an_error(vr, implicit):
    head = written(vr, implicit=implicit)[:-N_BYTES]
    for n_bytes in range(len(head)):
        with pytest.raises(struct.error):
            header(head[:n_bytes], 0, "<", implicit)


@pytest.mark.parametrize(("uid", "padded"), [("1.2", b"1.2\0"), ("1.23", b"1.23"), ("", b"")])
def test_a_uid_is_padded_to_even_length(uid, padded):
    assert to_bytes(uid) == padded
    assert to_text(padded) == to_text(padded + b" ") == uid


def test_a_uid_that_is_none_is_no_error():
    assert (to_text(b"1.\xff"), to_bytes("1.é")) == ("1.�", b"1.?\0")
