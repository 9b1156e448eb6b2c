# SPDX-License-Identifier: Apache-2.0
"""What a destination takes in no other syntax reaches it transcoded, pixel for pixel; what cannot be is kept."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from appliance.buffer import NewInstance
from appliance.dicom.deliver import Destination
from appliance.dicom.part10 import header, split
from appliance.dicom.transcode import transcode
from appliance.dicom.uids import EXPLICIT, IMPLICIT
from appliance.errors import DeliveryError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

LOSSLESS = ("MR_small_RLE.dcm", "MR_small_implicit.dcm", "MR_small.dcm")


@pytest.fixture
def storescp(tmp_path, free_port, start_dcmtk):
    """A storescp that takes Implicit VR Little Endian and nothing else."""
    (tmp_path / "stored").mkdir()
    start_dcmtk(free_port, "storescp", "+B", "+xi", "+uf", "-aet", "STORE", "-od", tmp_path / "stored", free_port)
    return free_port, tmp_path / "stored"


@pytest.mark.peer
def test_a_destination_that_takes_implicit_only_gets_the_same_pixels(buffer, storescp):
    port, stored = storescp
    expected = {}
    for number, name in enumerate(("CT_small.dcm", "MR_small_RLE.dcm")):
        data = Path(get_testdata_file(name)).read_bytes()
        parts = split(data)
        uids = (parts.sop_class_uid, parts.sop_instance_uid, parts.transfer_syntax_uid)
        buffer.put_instance(NewInstance(data, *uids, destinations=("pacs",)), number)
        expected[parts.sop_instance_uid] = dcmread(get_testdata_file(name)).pixel_array
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="STORE", timeout_s=10)
    alarms = {}
    destination = Destination("pacs", peer, buffer, Waits(), alarms.__setitem__)
    while destination.step(9):
        pass
    destination._hang_up()
    assert buffer.counts()["sent"] == 2, alarms
    got = {ds.SOPInstanceUID: ds for ds in map(dcmread, stored.iterdir())}
    assert {str(ds.file_meta.TransferSyntaxUID) for ds in got.values()} == {IMPLICIT}
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[uid].pixel_array, pixels) for uid, pixels in expected.items())
    assert len(buffer.database.query("SELECT * FROM audit WHERE event = 'transcoded'")) == 2


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT])
def test_every_element_is_what_it_was(name, syntax):
    path = get_testdata_file(name)
    raw = transcode(Path(path).read_bytes(), syntax)
    before = dcmread(path)
    file = header(before.SOPClassUID, before.SOPInstanceUID, syntax) + raw
    after = dcmread(BytesIO(file))
    assert np.array_equal(before.pixel_array, after.pixel_array)
    for element in before:
        if element.keyword != "PixelData":
            assert after[element.tag].value == element.value, element.keyword


@pytest.mark.parametrize("name", ["MR_small_bigendian.dcm", None])
def test_what_cannot_be_transcoded_is_told(name):
    data = Path(get_testdata_file(name)).read_bytes() if name else b"no dicom"
    with pytest.raises(DeliveryError, match="takes no transfer syntax that this instance can be given in") as caught:
        transcode(data, IMPLICIT)
    assert caught.value.permanent
