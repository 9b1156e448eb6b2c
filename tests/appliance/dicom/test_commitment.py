# SPDX-License-Identifier: Apache-2.0
"""Storage commitment: data sets against pydicom, both roles against a real Orthanc."""

import json
import threading
import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from appliance.buffer import Buffer, NewInstance
from appliance.buffer.outbox import STATES
from appliance.dicom import commitment, dimse, status
from appliance.dicom.answer_commitment import AnswerCommitment, take_request
from appliance.dicom.commitment import Commitment
from appliance.dicom.deliver import Destination
from appliance.dicom.part10 import split
from appliance.dicom.receive import Receiver
from appliance.dicom.request_commitment import RequestCommitment
from appliance.dicom.services import NRequest
from appliance.errors import PeerError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination, Settings

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
DEADLINE_S = 30
HOUR_S = 3600.0


def encoded(ds, implicit, undefined):
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, True
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    write_dataset(stream, ds)
    return stream.getvalue()


def report_of(good, failed):
    ds = Dataset()
    ds.TransactionUID = "2.25.7"
    ds.FailedSOPSequence, ds.ReferencedSOPSequence = [], []
    for uid in good:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, uid
        ds.ReferencedSOPSequence.append(item)
    for uid, reason in failed.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, item.FailureReason = CT, uid, reason
        ds.FailedSOPSequence.append(item)
    return ds


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("undefined", [True, False])
def test_reports_are_read_as_pydicom_writes_them(implicit, undefined):
    ds = report_of(["1.2.3", "1.2.30"], {"1.2.4": 0x0112})
    data = encoded(ds, implicit, undefined)
    expected = Commitment("2.25.7", ((CT, "1.2.3"), (CT, "1.2.30")), {"1.2.4": 0x0112})
    assert commitment.read(data, IMPLICIT if implicit else EXPLICIT) == expected


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_what_is_written_is_read_by_pydicom(syntax):
    ours = commitment.write(Commitment("2.25.7", ((CT, "1.2.3"),), {"1.2.4": 0x0112}), {"1.2.4": CT}, syntax)
    ds = dcmread(BytesIO(ours), force=True)
    assert ds == report_of(["1.2.3"], {"1.2.4": 0x0112})
    assert commitment.read(ours, syntax).failed == {"1.2.4": 0x0112}


@given(st.binary(max_size=200), st.sampled_from([IMPLICIT, EXPLICIT]))
def test_garbage_is_the_peers_fault(data, syntax):
    with suppress(PeerError):
        commitment.read(data, syntax)


class Box:
    """A receiver and a destination on one folder, as two processes would be."""

    def __init__(self, tmp_path, orthanc, commit="required"):
        settings = {
            "site": {"name": "box", "data_dir": tmp_path / "data"},
            "listen": {
                "dicom": {"port": orthanc.our_port, "bind": "127.0.0.1"},
                "peers": {"orthanc": {"ae_title": orthanc.ae_title, "host": "127.0.0.1", "port": orthanc.port}},
            },
            "buffer": {"reserve_gb": 0},
        }
        self.settings = Settings.model_validate(settings)
        self.alarms = {}
        self.buffer = Buffer(tmp_path / "data")
        self.receiver = Receiver(self.settings, self.alarms.__setitem__)
        peer = DicomDestination(
            host="127.0.0.1", port=orthanc.port, ae_title=orthanc.ae_title, timeout_s=10, commit=commit
        )
        self.destination = Destination("pacs", peer, self.buffer, Waits(), self.alarms.__setitem__)
        self.asks = RequestCommitment("pacs", peer, self.buffer, self.alarms.__setitem__)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.receiver.run, args=(self.stop,))

    def __enter__(self):
        self.thread.start()
        self.until(lambda: self.receiver.port)
        return self

    def __exit__(self, *_):
        self.destination._hang_up()
        self.stop.set()
        self.thread.join(DEADLINE_S)
        self.receiver.close()
        self.buffer.close()

    def until(self, condition):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, (self.buffer.counts(), self.alarms)
            time.sleep(0.02)

    def owe(self, n):
        parts = split(Path(get_testdata_file("CT_small.dcm")).read_bytes())
        for number in range(n):
            uid = parts.sop_instance_uid[:-2] + f"{number:02d}"
            data = Path(get_testdata_file("CT_small.dcm")).read_bytes()
            data = data.replace(parts.sop_instance_uid.encode(), uid.encode())
            new = NewInstance(data, parts.sop_class_uid, uid, parts.transfer_syntax_uid, destinations=("pacs",))
            self.buffer.put_instance(new, 1)


@pytest.mark.peer
def test_orthanc_commits_on_an_association_of_its_own(tmp_path, orthanc):
    with Box(tmp_path, orthanc) as box:
        box.owe(3)
        assert box.destination.step(2)
        assert box.buffer.counts()["sent"] == 3
        assert box.buffer.purge(1e9, 0) == 0
        assert not box.asks.step(3), "more may come"
        assert box.asks.step(20)
        box.until(lambda: box.buffer.counts()["committed"] == 3)
        assert not box.asks.step(40)
        assert box.buffer.purge(1e11, 0) == 3
        assert not any(box.alarms.values())


@pytest.mark.peer
def test_orthanc_that_did_not_keep_one_gets_it_again(tmp_path, orthanc):
    with Box(tmp_path, orthanc) as box:
        box.owe(3)
        box.destination.step(2)
        orthanc.ask("DELETE", f"/instances/{orthanc.get('/instances')[0]}")
        box.asks.step(20)
        box.until(lambda: box.buffer.counts()["committed"] == 2)
        box.until(lambda: box.buffer.counts()["queued"] == 1)
        box.destination.step(30)
        assert box.asks.step(50)
        box.until(lambda: box.buffer.counts()["committed"] == 3)
        assert len(orthanc.get("/instances")) == 3


@pytest.mark.peer
def test_what_orthanc_lists_is_verified_and_what_it_does_not_list_is_sent_again(tmp_path, orthanc):
    with Box(tmp_path, orthanc, commit="verify") as box:
        box.owe(3)
        box.destination.step(2)
        orthanc.ask("DELETE", f"/instances/{orthanc.get('/instances')[0]}")
        assert box.asks.step(20)
        assert counts(box.buffer) == {"verified": 2, "sent": 1}
        assert box.buffer.purge(1e9, 0) == 2
        assert not box.asks.step(30), "it may be filed later"
        assert box.asks.step(2 + 5 * HOUR_S)
        assert counts(box.buffer) == {"verified": 2, "queued": 1}
        box.destination.step(2 + 5 * HOUR_S)
        assert box.asks.step(20 + 5 * HOUR_S)
        assert counts(box.buffer) == {"verified": 3}
        assert box.buffer.purge(1e9, 0) == 1
        assert not any(box.alarms.values())


def counts(buffer):
    found = buffer.counts()
    return {name: found[name] for name in STATES if found[name]}


@pytest.mark.peer
def test_orthanc_asks_us_and_is_told(tmp_path, orthanc):
    with Box(tmp_path, orthanc) as box:
        for name in ("CT_small.dcm", "MR_small.dcm"):
            upload(orthanc, Path(get_testdata_file(name)).read_bytes())
        instances = orthanc.get("/instances")
        orthanc.ask("POST", "/modalities/nearscan/store", [instances[0]])
        box.until(lambda: box.buffer.counts()["received"] == 1)
        answers = AnswerCommitment(box.buffer, box.settings.listen.peers, "NEARSCAN", box.alarms.__setitem__)

        def ask(resources):
            path = json.loads(orthanc.ask("POST", "/modalities/nearscan/storage-commitment", {"Resources": resources}))
            return path["Path"]

        path = ask([instances[0]])
        answers.step(time.time())
        box.until(lambda: orthanc.get(path)["Status"] == "Success")
        path = ask(instances)
        answers.step(time.time())
        assert orthanc.get(path)["Status"] == "Pending", "the missing one may have come just now"
        answers.step(time.time() + 20)
        box.until(lambda: orthanc.get(path)["Status"] == "Failure")
        (failed,) = orthanc.get(path)["Failures"]
        assert "was not available" in failed["Description"]
        answers.step(time.time() + 1e6)
        assert not any(box.alarms.values())


def upload(orthanc, data):
    import urllib.request

    request = urllib.request.Request(f"http://127.0.0.1:{orthanc.http_port}/instances", data, method="POST")
    urllib.request.urlopen(request, timeout=10).read()


def request(data, ae="MR", class_uid=commitment.SOP_CLASS, command=dimse.N_ACTION_RQ):
    return NRequest(command, class_uid, commitment.INSTANCE, 1, data, IMPLICIT, ae, "127.0.0.1")


def test_requests_of_others_are_kept_or_refused_by_the_standards_status(tmp_path, free_port):
    settings = Settings.model_validate(
        {
            "site": {"name": "box", "data_dir": tmp_path / "data"},
            "listen": {
                "dicom": {"port": free_port, "bind": "127.0.0.1"},
                "peers": {
                    "mr": {"ae_title": "MR", "host": "127.0.0.1", "port": 104},
                    "ct": {"ae_title": "CT", "host": "127.0.0.1"},
                },
            },
        }
    )
    one = Receiver(settings, lambda key, text: None)
    data = commitment.write(Commitment("2.25.7", ((CT, "1.2.3"),)), {})
    assert one.normalized(request(data)).status == status.SUCCESS
    assert one.normalized(request(data)).status == status.SUCCESS
    assert one.normalized(request(data, ae="CT")).status == status.PROCESSING_FAILURE
    assert one.normalized(request(data, ae="XX")).status == status.PROCESSING_FAILURE
    assert one.normalized(request(b"\x08\0")).status == status.INVALID_ARGUMENT
    assert one.normalized(request(data, class_uid="1.2.3")).status == status.UNRECOGNIZED
    assert one.normalized(request(data, command=dimse.N_EVENT_REPORT_RQ)).status == status.NO_SUCH_INSTANCE
    assert len(one._requests.due(1e12)) == 1
    one.close()


def test_a_modality_that_is_away_is_told_later(tmp_path):
    buffer = Buffer(tmp_path)
    settings = Settings.model_validate(
        {"site": {"name": "b"}, "listen": {"peers": {"mr": {"ae_title": "MR", "host": "127.0.0.1", "port": 1}}}}
    )
    alarms = {}
    answers = AnswerCommitment(buffer, settings.listen.peers, "NEARSCAN", alarms.__setitem__)
    data = commitment.write(Commitment("2.25.7", ((CT, "1.2.3"),)), {})
    take_request(answers._requests, settings.listen.peers, request(data), 100)
    answers.step(101)
    assert alarms == {}, "waits for the index first"
    now, waits = 111.0, []
    for _ in range(5):
        answers.step(now)
        (row,) = buffer.database.query("SELECT next_s FROM commitment_requests")
        waits.append(row[0] - now)
        now = row[0]
    assert waits == sorted(waits) and waits[-1] > 10
    assert "cannot connect" in alarms["report to MR"]
    buffer.close()
