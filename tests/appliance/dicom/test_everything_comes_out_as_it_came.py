# SPDX-License-Identifier: Apache-2.0
"""Real files of many vendors and syntaxes, and hostile ones, through the receiver, the buffer and the deliverer."""

import csv
import struct
import tarfile
from pathlib import Path

import pytest
from delivering import send_all
from receivers import receiving

from appliance.buffer import Kept, index
from appliance.dicom.association import ECHO_CONTEXT, Association
from appliance.dicom.deliver import Destination
from appliance.dicom.identity import uids_of
from appliance.dicom.negotiation import DEFLATED
from appliance.dicom.part10 import dataset_of
from appliance.errors import DeliveryError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

DATA = Path(__file__).parents[4] / "shared" / "data"
SERIES = ("ct_head_ge", "ct_phantom_philips_S2010", "ct_phantom_philips_S3010", "mr_t1_siemens_HFS")
CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")


def split(raw):
    """SOP class, SOP instance, transfer syntax and data set of a file, read by struct alone; None: it is none."""
    if raw[128:132] != b"DICM":
        return None
    offset, meta = 132, {}
    while offset + 8 <= len(raw) and raw[offset : offset + 2] == b"\x02\x00":
        element, vr, length = struct.unpack_from("<H2sH", raw, offset + 2)
        start = offset + 8
        if vr in (b"OB", b"UN"):
            (length,) = struct.unpack_from("<I", raw, offset + 8)
            start = offset + 12
        meta[element] = raw[start : start + length].rstrip(b"\0 ").decode("latin-1")
        offset = start + length
    if not {2, 3, 16} <= meta.keys():
        return None
    return meta[2], meta[3], meta[16], raw[offset:]


def real_files():
    files = {}
    for path in sorted([*(DATA / "pydicom_data").rglob("*"), *(DATA / "vendors").rglob("*")]):
        if path.is_file() and path.suffix not in (".txt", ".dcmqi") and not path.name.startswith("LICENSE"):
            files[path.name] = split(path.read_bytes())
    for name in SERIES:
        with tarfile.open(DATA / "series" / f"{name}.tar.xz") as archive:
            for member in archive.getmembers():
                if member.isfile():
                    files[f"{name}/{member.name}"] = split(archive.extractfile(member).read())
    return {name: parts for name, parts in files.items() if parts}


@pytest.fixture
def box(tmp_path, free_port):
    """A running receiver; gives it and a function that sends one data set."""

    def send(sop_class, uid, syntax, data):
        peer = DicomDestination(host="127.0.0.1", port=free_port, ae_title="NEARSCAN", timeout_s=10)
        with Association("box", peer, [(sop_class, syntax), ECHO_CONTEXT]) as assoc:
            answer = assoc.store(sop_class, uid, syntax, memoryview(data))
            assoc.echo()
        return answer

    with receiving(tmp_path / "data", free_port) as one:
        yield one, send


def deliver_all(one, port):
    """Owe everything to one destination and send it."""
    one._buffer.index()
    with one._buffer.database.transaction() as conn:
        for (instance_id,) in conn.execute("SELECT id FROM instances ORDER BY id").fetchall():
            index.owe(conn, Kept(instance_id, new=True, conflict=False), ["pacs"], 5, 1)
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", timeout_s=10)
    destination = Destination("pacs", peer, one._buffer, Waits(), lambda key, text: None)
    send_all(destination, 2)


def test_every_real_file_goes_in_and_comes_out_with_its_data_set_byte_identical(box, scp):
    one, send = box
    files = real_files()
    assert len(files) > 200
    deflated = {name for name, parts in files.items() if parts[2] in DEFLATED}
    for name, parts in files.items():
        if name in deflated:
            with pytest.raises(DeliveryError, match="does not take SOP class"):
                send(*parts)
        else:
            assert send(*parts) == 0, name
    port, got = scp()
    deliver_all(one, port)
    sent = {(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid): one.data for one in got}
    different = {parts[:3] for name, parts in files.items() if name not in deflated}
    assert sent.keys() == different
    originals = {}
    for parts in files.values():
        originals.setdefault(parts[:3], set()).add(bytes(parts[3]))
    assert all(bytes(dataset_of(data)) in originals[key] for key, data in sent.items())
    print(f"{len(files)} files, {len(deflated)} deflated refused, {len({key[2] for key in sent})} transfer syntaxes")


REFUSED = {
    "21_meta_uid_mismatch.dcm": "0xA900",
    "35_deflate_bomb_200MB.dcm": "does not take SOP class",
}


@pytest.mark.parametrize("uid", ["../../../../tmp/evil", "1" * 65, "1.2\n3", "1.2.x"])
def test_a_uid_that_is_none_is_refused(box, uid):
    with pytest.raises(DeliveryError, match="0x0117"):
        box[1](CT, uid, EXPLICIT, b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")


def test_every_hostile_file_gets_what_it_deserves_and_takes_nothing_down(box, scp):
    one, send = box
    with (DATA / "malformed_generated" / "MANIFEST.tsv").open() as manifest:
        names = [row[0] for row in csv.reader(manifest, delimiter="\t")]
    assert len(names) == 38
    kept = []
    for n, name in enumerate(names):
        raw = (DATA / "malformed_generated" / name).read_bytes()
        parts = split(raw)
        if not parts or not parts[3]:  # no sender could make a C-STORE of it; then as the data set of another
            parts = (*(uids_of(raw, EXPLICIT) or (CT, f"1.2.3.{n}")), EXPLICIT, raw or b"\0")
        if name in REFUSED:
            with pytest.raises(DeliveryError, match=REFUSED[name]):
                send(*parts)
        else:
            assert send(*parts) == 0, name
            kept.append(bytes(parts[3]))
    assert send(CT, "1.9", EXPLICIT, b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100") == 0
    one._buffer.index()
    port, got = scp()
    deliver_all(one, port)
    assert set(kept) <= {bytes(dataset_of(received.data)) for received in got}
    print(f"{len(names)} hostile files: {len(kept)} kept as they are, {len(names) - len(kept)} refused")
