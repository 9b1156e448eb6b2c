# SPDX-License-Identifier: Apache-2.0
"""DCMTK's dcmqrscp as a second PACS: what we deliver it finds, and what it is asked to move comes to us."""

import os
import subprocess
from pathlib import Path

import pytest
from delivering import send_all
from pydicom.data import get_testdata_file
from receivers import receiving

from appliance.buffer import Buffer, NewInstance
from appliance.dicom.deliver import Destination
from appliance.dicom.part10 import split
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination
from appliance.simulate.free_ports import free_ports

pytestmark = pytest.mark.peer
FILES = ("CT_small.dcm", "MR_small_implicit.dcm")
NODELAY = {**os.environ, "TCP_NODELAY": "1"}


def free():
    return free_ports(1)[0]


@pytest.fixture
def archive(tmp_path, start_dcmtk):
    """A running dcmqrscp; gives its port and the port where it looks for us."""
    port, our_port = free(), free()
    (tmp_path / "db").mkdir()
    (tmp_path / "qr.cfg").write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nnearscan = (NEARSCAN, 127.0.0.1, {our_port})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nARCHIVE {tmp_path / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    start_dcmtk(port, "dcmqrscp", "-c", tmp_path / "qr.cfg")
    return port, our_port


def test_delivered_found_and_moved_back(tmp_path, archive):
    port, our_port = archive
    outgoing = Buffer(tmp_path / "out")
    originals = {}
    for name in FILES:
        data = Path(get_testdata_file(name)).read_bytes()
        parts = split(data)
        originals[parts.sop_instance_uid] = bytes(parts.dataset)
        uids = (parts.sop_class_uid, parts.sop_instance_uid, parts.transfer_syntax_uid)
        outgoing.put_instance(NewInstance(data, *uids, destinations=("archive",)), 1)
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="ARCHIVE", timeout_s=10)
    alarms = {}
    destination = Destination("archive", peer, outgoing, Waits(), alarms.__setitem__)
    send_all(destination, 2)
    assert outgoing.counts()["sent"] == len(FILES), alarms
    outgoing.close()

    with receiving(tmp_path / "in", our_port) as receiver:
        for name in FILES:
            study = subprocess.run(
                ["dcmdump", "+P", "0020,000d", "-s", get_testdata_file(name)],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            uid = study.partition("[")[2].partition("]")[0]
            keys = ["-k", "0008,0052=STUDY", "-k", f"0020,000D={uid}"]
            to = ["-aet", "NEARSCAN", "-aec", "ARCHIVE", "-aem", "NEARSCAN", "127.0.0.1", str(port)]
            subprocess.run(["movescu", "-S", "--no-port", *keys, *to], env=NODELAY, check=True)
        receiver._buffer.index()
        rows = receiver._buffer.database.query("SELECT sop_instance_uid FROM instances")
    assert {row[0] for row in rows} == originals.keys()
