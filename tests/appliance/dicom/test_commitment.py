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
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

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
from appliance.dicom.uids import STORAGE_COMMITMENT
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


def request(data, ae="MR", class_uid=STORAGE_COMMITMENT, command=dimse.N_ACTION_RQ, uid=commitment.INSTANCE, action=1):
    return NRequest(command, class_uid, uid, action, data, IMPLICIT, ae, "127.0.0.1")


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
    assert one.normalized(request(data, uid="1.2.3")).status == status.NO_SUCH_INSTANCE
    assert one.normalized(request(data, action=2)).status == status.NO_SUCH_ACTION
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


class Modality:
    """Takes reports as an SCU of storage commitment does; answers `status`."""

    def __init__(self, status=0):
        self.reports, self.status = [], status
        ae = AE("MR")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)])
        self.port = self.server.server_address[1]

    def take(self, event):
        info = event.event_information
        good = [str(item.ReferencedSOPInstanceUID) for item in info.get("ReferencedSOPSequence", [])]
        failed = {str(item.ReferencedSOPInstanceUID): item.FailureReason for item in info.get("FailedSOPSequence", [])}
        self.reports.append((str(info.TransactionUID), event.event_type, good, failed))
        return self.status, None


@pytest.fixture
def modality():
    one = Modality()
    yield one
    one.server.shutdown()


@pytest.fixture
def asked(tmp_path, modality):
    """Ask us about (SOP class, SOP instance); gives the buffer, and a function that answers at a time."""
    buffer = Buffer(tmp_path)
    peers = {
        "mr": {"ae_title": "MR", "host": "127.0.0.1", "port": modality.port},
        "ct": {"ae_title": "CT", "host": "127.0.0.1", "port": 1},
    }
    peers = Settings.model_validate({"site": {"name": "b"}, "listen": {"peers": peers}}).listen.peers
    alarms = {}
    answers = AnswerCommitment(buffer, peers, "NEARSCAN", alarms.__setitem__)

    def ask(instances, transaction="2.25.7", ae="MR", now=100):
        data = commitment.write(Commitment(transaction, tuple(instances)), {})
        return take_request(answers._requests, peers, request(data, ae=ae), now).status

    yield buffer, ask, answers, alarms
    buffer.close()


def test_only_what_can_be_read_back_is_promised(asked, modality, tmp_path):
    buffer, ask, answers, _ = asked
    for n in range(4):
        to = ("pacs",) if n == 1 else ()
        buffer.put_instance(NewInstance(b"x" * 99 + b"%d" % n, CT, f"1.{n}", EXPLICIT, destinations=to), 1)
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 1), 1)
    assert buffer.purge(1e9, 0) == 1, "delivered, and no longer here"
    (row,) = buffer.database.query("SELECT segment, position FROM instances WHERE sop_instance_uid = '1.2'")
    with (tmp_path / "segments" / row[0]).open("r+b") as file:
        file.seek(row[1] + 64 + 5)
        file.write(b"y")
    mr = "1.2.840.10008.5.1.4.1.1.4"
    assert ask([(CT, "1.0"), (CT, "1.1"), (CT, "1.2"), (mr, "1.3"), (CT, "1.4")]) == status.SUCCESS
    answers.step(101)
    assert modality.reports == [], "the missing one may have come just now"
    answers.step(200)
    failed = {"1.2": 0x0110, "1.3": 0x0119, "1.4": 0x0112}
    assert modality.reports == [("2.25.7", 2, ["1.0", "1.1"], failed)]
    answers.step(1e9)
    assert len(modality.reports) == 1


def test_one_uid_in_two_classes_is_each_of_them(asked, modality):
    buffer, ask, answers, _ = asked
    mr = "1.2.840.10008.5.1.4.1.1.4"
    buffer.put_instance(NewInstance(b"a", CT, "1.1", EXPLICIT), 1)
    buffer.put_instance(NewInstance(b"b", mr, "1.1", EXPLICIT), 1)
    ask([(CT, "1.1")], "2.25.1")
    ask([(mr, "1.1")], "2.25.2")
    answers.step(200)
    assert [report[1:] for report in modality.reports] == [(1, ["1.1"], {})] * 2


def test_a_request_that_comes_again_is_answered_again(asked, modality):
    buffer, ask, answers, _ = asked
    buffer.put_instance(NewInstance(b"a", CT, "1.1", EXPLICIT), 1)
    ask([(CT, "1.1")])
    ask([(CT, "1.1")], now=101)
    answers.step(102)
    answers.step(103)
    assert len(modality.reports) == 1
    ask([(CT, "1.1")], now=200)
    answers.step(201)
    assert len(modality.reports) == 2
    answers._requests.forget(1e9)
    assert buffer.database.query("SELECT count(*) FROM commitment_requests") == [(0,)]


@pytest.mark.parametrize(("code", "n_reports"), [(0x0110, 2), (0x0213, 2), (0x0112, 1), (0x0115, 1)])
def test_only_a_modality_that_cannot_now_is_told_again(asked, modality, code, n_reports):
    buffer, ask, answers, alarms = asked
    buffer.put_instance(NewInstance(b"a", CT, "1.1", EXPLICIT), 1)
    ask([(CT, "1.1")])
    modality.status = code
    answers.step(100)
    answers.step(1000)
    assert len(modality.reports) == n_reports
    assert bool(alarms["report to MR"]) == (n_reports == 2)


def test_a_modality_that_is_away_holds_up_nobody(asked, modality):
    buffer, ask, answers, alarms = asked
    buffer.put_instance(NewInstance(b"a", CT, "1.1", EXPLICIT), 1)
    for n in range(30):
        ask([(CT, "1.1")], f"2.25.{n}", ae="CT")
    ask([(CT, "1.1")], "2.25.99")
    answers.step(100)
    assert [row[0] for row in buffer.database.query("SELECT next_s FROM commitment_requests ORDER BY id")] == [
        105.0
    ] * 30 + [100.0]
    answers.step(101)
    assert [report[0] for report in modality.reports] == ["2.25.99"]
    assert "cannot connect" in alarms["report to CT"]


def test_a_restart_between_request_and_report_loses_no_request(asked, modality, tmp_path):
    buffer, ask, answers, _ = asked
    buffer.put_instance(NewInstance(b"a", CT, "1.1", EXPLICIT), 1)
    ask([(CT, "1.1")])
    again = Buffer(tmp_path)
    again.recover(150)
    AnswerCommitment(again, {"mr": next(iter(answers._peers.values()))}, "NEARSCAN", lambda key, text: None).step(200)
    again.close()
    assert [report[0] for report in modality.reports] == ["2.25.7"]
    answers.step(300)
    assert len(modality.reports) == 1
