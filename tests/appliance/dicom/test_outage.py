# SPDX-License-Identifier: Apache-2.0
"""PACS away for days: 2,000 instances wait, and then all arrive at a real Orthanc, once, unaltered and in order."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from appliance.buffer import Buffer, NewInstance
from appliance.dicom.deliver import Destination
from appliance.dicom.part10 import header
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
N_SERIES, N_SLICES, STAT = 39, 50, 9
DAY_S = 86_400.0

pytestmark = pytest.mark.peer


def element(tag, vr, value):
    value = value if isinstance(value, bytes) else value.encode()
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    long = vr in ("OW",)
    head = tag.to_bytes(4, "big")
    head = head[1::-1] + head[:1:-1] + vr.encode()
    return head + (b"\0\0" + len(value).to_bytes(4, "little") if long else len(value).to_bytes(2, "little")) + value


def make(series, number, priority=5):
    """One small CT instance, and the hash of its pixels."""
    uid, rng = f"1.2.3.{series}.{number}", np.random.default_rng([series, number])
    pixels = rng.integers(0, 4096, (16, 16), dtype=np.uint16).tobytes()
    us = int.to_bytes
    data = b"".join(
        element(tag, vr, value)
        for tag, vr, value in (
            (0x00080016, "UI", CT),
            (0x00080018, "UI", uid),
            (0x00080060, "CS", "CT"),
            (0x00100020, "LO", "OUTAGE"),
            (0x0020000D, "UI", "1.2.3"),
            (0x0020000E, "UI", f"1.2.3.{series}"),
            (0x00200013, "IS", str(number)),
            (0x00280002, "US", us(1, 2, "little")),
            (0x00280004, "CS", "MONOCHROME2"),
            (0x00280010, "US", us(16, 2, "little")),
            (0x00280011, "US", us(16, 2, "little")),
            (0x00280100, "US", us(16, 2, "little")),
            (0x00280101, "US", us(12, 2, "little")),
            (0x00280102, "US", us(11, 2, "little")),
            (0x00280103, "US", us(0, 2, "little")),
            (0x7FE00010, "OW", pixels),
        )
    )
    file = header(CT, uid, EXPLICIT) + data
    new = NewInstance(file, CT, uid, EXPLICIT, origin="received", destinations=("pacs",), priority=priority)
    return new, hashlib.sha256(pixels).hexdigest()


def test_three_days_without_pacs(tmp_path, orthanc):
    buffer = Buffer(tmp_path / "data")
    peer = DicomDestination(host="127.0.0.1", port=orthanc.port, ae_title=orthanc.ae_title, timeout_s=5)
    destination = Destination("pacs", peer, buffer, Waits(), lambda key, text: None)
    pixels = {}

    def put(series, number, now, **more):
        new, digest = make(series, number, **more)
        pixels[new.sop_instance_uid] = digest
        return buffer.put_instance(new, now)

    for series in range(4):
        for number in range(N_SLICES):
            put(series, number, 0)
    arrived = threading.Event()
    sending = threading.Thread(target=lambda: [destination.step(n) for n in range(1, 60) if not arrived.is_set()])
    sending.start()
    while len(orthanc.get("/instances")) < 40:
        pass
    orthanc._process.kill()  # in the middle of a transfer
    arrived.set()
    sending.join(30)
    counts = buffer.counts()
    assert 0 < counts["queued"] < 200
    for series in range(4, N_SERIES):
        now = series * 3 * DAY_S / N_SERIES
        for number in range(N_SLICES):
            put(series, number, now)
        destination.step(now)
    assert not put(0, 0, 3 * DAY_S).new, "a scanner that sends again"
    for number in range(N_SLICES):
        put(N_SERIES, number, 3 * DAY_S, priority=STAT)
    before = buffer.counts()
    assert (before["received"], before["quarantined"], before["held"]) == (2000, 0, 0)
    assert before["sent"] == counts["sent"]

    orthanc.stop()
    orthanc.start()
    n_known = len(orthanc.get("/instances"))
    now = 3 * DAY_S + 60
    while buffer.counts()["queued"]:
        destination.step(now)
        now += 30
    destination._hang_up()

    assert buffer.counts()["sent"] == 2000
    order = arrivals(orthanc)
    assert len(order) == len(set(order)) == 2000
    assert all(uid.startswith(f"1.2.3.{N_SERIES}.") for uid in order[n_known : n_known + N_SLICES]), "STAT first"
    for series in range(N_SERIES + 1):
        numbers = [int(uid.rpartition(".")[2]) for uid in order if uid.startswith(f"1.2.3.{series}.")]
        assert numbers == list(range(N_SLICES)), series
    assert stored_pixels(orthanc) == pixels
    assert buffer.first_broken_audit_row() is None
    buffer.close()


def arrivals(orthanc):
    """SOP Instance UIDs in the order in which Orthanc took them."""
    ids, since, done = [], 0, False
    while not done:
        page = orthanc.get(f"/changes?since={since}&limit=1000")
        ids += [change["ID"] for change in page["Changes"] if change["ChangeType"] == "NewInstance"]
        since, done = page["Last"], page["Done"]
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda one: orthanc.get(f"/instances/{one}")["MainDicomTags"]["SOPInstanceUID"], ids))


def stored_pixels(orthanc):
    with ThreadPoolExecutor(4) as pool:
        files = pool.map(lambda one: orthanc.get_bytes(f"/instances/{one}/file"), orthanc.get("/instances"))
        sets = [dcmread(BytesIO(file)) for file in files]
    return {ds.SOPInstanceUID: hashlib.sha256(ds.PixelData).hexdigest() for ds in sets}
