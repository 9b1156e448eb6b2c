# SPDX-License-Identifier: Apache-2.0
"""Asking a PACS for commitment, in all its shapes: the PACS is pynetdicom's, and does what each test scripts."""

import threading
import time
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, StudyRootQueryRetrieveInformationModelFind, Verification

from appliance.buffer import Buffer, NewInstance
from appliance.buffer.outbox import STATES
from appliance.dicom.part10 import split
from appliance.dicom.request_commitment import RequestCommitment
from appliance.settings import DicomDestination

IMPLICIT = "1.2.840.10008.1.2"
HOUR_S = 3600.0
FILE = Path(get_testdata_file("CT_small.dcm")).read_bytes()
PARTS = split(FILE)
STUDY = "1.3.6.1.4.1.5962.1.2.1.20040119072730.12322"
SERIES = "1.3.6.1.4.1.5962.1.3.1.1.20040119072730.12322"


class Pacs:
    """Answers `status` and reports; what is in `early` it sends before the answer, in `at_once` when it is called."""

    def __init__(self, commits=True, finds=True):
        self.status, self.holds, self.asked, self.queries = 0x0000, set(), [], []
        self.early, self.at_once, self.answers = [], [], []
        self.aborts = self.silent = False
        ae = AE("PACS")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 10
        ae.add_supported_context(Verification)
        if commits:
            ae.add_supported_context(StorageCommitmentPushModel, IMPLICIT)
        if finds:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind, IMPLICIT)
        handlers = [
            (evt.EVT_ACCEPTED, self._accepted), (evt.EVT_N_ACTION, self._action), (evt.EVT_C_FIND, self._find)
        ]  # fmt: skip
        self.server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)

    def _send(self, assoc, report):
        event = 2 if "FailedSOPSequence" in report else 1
        answer, _ = assoc.send_n_event_report(
            report, event, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1"
        )  # fmt: skip
        self.answers.append(answer.Status)

    def _accepted(self, event):
        def send():
            while not event.assoc.is_established:
                time.sleep(0.01)
            for report in self.at_once:
                self._send(event.assoc, report)
            self.at_once = []

        if self.at_once:
            threading.Thread(target=send).start()

    def _action(self, event):
        info = event.action_information
        uids = [item.ReferencedSOPInstanceUID for item in info.ReferencedSOPSequence]
        self.asked.append((info.TransactionUID, uids))
        if self.aborts:
            event.assoc.abort()
            return 0x0000, None
        for report in self.early:  # here, and in no other thread: there pynetdicom takes our request for the answer
            self._send(event.assoc, report)
        self.early = []
        if self.status == 0 and not self.silent:
            report = report_of(info.TransactionUID, uids, self.holds)
            threading.Thread(target=lambda: (time.sleep(0.05), self._send(event.assoc, report))).start()
        return self.status, None

    def _find(self, event):
        self.queries.append(event.identifier)
        if event.identifier.SOPInstanceUID in self.holds:
            yield 0xFF00, event.identifier
        yield 0x0000, None


def report_of(transaction, uids, holds):
    ds = Dataset()
    ds.TransactionUID = transaction
    for good in (True, False):
        items = []
        for uid in uids:
            if (uid in holds) == good:
                item = Dataset()
                item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = PARTS.sop_class_uid, uid
                if not good:
                    item.FailureReason = 0x0112
                items.append(item)
        if good:
            ds.ReferencedSOPSequence = items
        elif items:
            ds.FailedSOPSequence = items
    return ds


@pytest.fixture
def pacs(request):
    one = Pacs(**getattr(request, "param", {}))
    yield one
    one.server.shutdown()


@pytest.fixture
def buffer(tmp_path):
    opened = Buffer(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def alarms():
    return {}


@pytest.fixture
def asks(pacs, buffer, alarms):
    def make(commit="required", port=None):
        peer = DicomDestination(
            host="127.0.0.1", port=port or pacs.server.server_address[1], ae_title="PACS", timeout_s=3, commit=commit
        )
        return RequestCommitment("pacs", peer, buffer, alarms.__setitem__)

    return make


def send(buffer, n, now=2, enough="committed", first=0):
    """Have `n` instances sent; gives their UIDs."""
    uids = [f"{PARTS.sop_instance_uid[:-2]}{number:02d}" for number in range(first, first + n)]
    for uid in uids:
        data = FILE.replace(PARTS.sop_instance_uid.encode(), uid.encode())
        buffer.put_instance(
            NewInstance(data, PARTS.sop_class_uid, uid, PARTS.transfer_syntax_uid, destinations=("pacs",)), now
        )
    buffer.outbox.mark_sent(buffer.outbox.claim("pacs", now), now, enough=enough)
    return uids


def states(buffer):
    found = buffer.counts()
    return {name: found[name] for name in STATES if found[name]}


def test_a_report_on_the_same_association(pacs, buffer, asks, alarms):
    pacs.holds = set(send(buffer, 3)[:2])
    assert asks().step(20)
    assert states(buffer) == {"committed": 2, "queued": 1}
    assert pacs.answers == [0]
    assert len(pacs.asked) == 1
    assert not any(alarms.values())


def test_a_report_on_our_next_association_before_its_answer(pacs, buffer, asks):
    uids = send(buffer, 2)
    pacs.silent = True
    one = asks()
    assert one.step(20)
    assert states(buffer) == {"sent": 2}
    more = send(buffer, 1, now=30, first=7)
    pacs.early = [report_of(pacs.asked[0][0], uids, set(uids))]
    assert one.step(50)
    assert states(buffer) == {"committed": 2, "sent": 1}
    assert [asked for _, asked in pacs.asked] == [uids, more]


def test_an_association_is_opened_for_a_pacs_that_reports_only_then(pacs, buffer, asks):
    uids = send(buffer, 1)
    pacs.silent = True
    one = asks()
    one.step(20)
    pacs.at_once = [report_of(pacs.asked[0][0], uids, set(uids))]
    one.step(100)
    assert states(buffer) == {"sent": 1}, "not all the time"
    one.step(400)
    assert states(buffer) == {"committed": 1}
    assert len(pacs.asked) == 1
    one.step(1000)
    assert not buffer.database.query("SELECT 1 FROM commitment_items WHERE outcome = ''")


def test_reports_of_nobody_and_reports_that_cannot_be_read_are_answered_so(pacs, buffer, asks):
    send(buffer, 1)
    pacs.silent = True
    empty = Dataset()
    empty.PatientName = "x"
    pacs.early = [report_of("2.25.99", ["1.2.3"], {"1.2.3"}), empty]
    assert asks().step(20)
    assert pacs.answers == [0x0112, 0x0115]
    assert states(buffer) == {"sent": 1}


def test_what_is_never_reported_is_asked_for_again_and_told(pacs, buffer, asks, alarms):
    send(buffer, 2)
    pacs.silent = True
    one = asks()
    one.step(20)
    assert not any(alarms.values())
    assert one.step(20 + 5 * HOUR_S)
    assert len({transaction for transaction, _ in pacs.asked}) == 2
    assert "2 instances were not reported on within 4 h and are asked for again" in alarms["commitment pacs"]
    assert "check that it knows our address" in alarms["commitment pacs"]
    pacs.silent, pacs.holds = False, set(pacs.asked[0][1])
    one.step(20 + 10 * HOUR_S)
    assert states(buffer) == {"committed": 2}
    send(buffer, 1, now=11 * HOUR_S, first=5)
    one.step(12 * HOUR_S)
    assert alarms["commitment pacs"] == ""


def test_an_association_that_breaks_after_the_request_leaves_its_report_valid(pacs, buffer, asks, alarms):
    uids = send(buffer, 2)
    pacs.aborts = True
    one = asks()
    assert not one.step(20)
    assert "the association broke" in alarms["commitment pacs"]
    assert not one.step(25), "left alone for a while"
    pacs.aborts, pacs.silent = False, True
    pacs.early = [report_of(pacs.asked[0][0], uids, {uids[0]})]
    assert one.step(60), "and then asked at once"
    assert states(buffer) == {"committed": 1, "queued": 1}


def test_a_pacs_that_is_away_costs_no_row_and_is_tried_with_a_growing_wait(buffer, asks, alarms):
    send(buffer, 2)
    one = asks(port=1)
    now, waits = 20.0, []
    for _ in range(12):
        one.step(now)
        waits.append(one._not_before - now)
        now = one._not_before
    assert waits[:3] == [10, 20, 40] and waits[-1] == HOUR_S
    assert buffer.database.query("SELECT count(*) FROM commitments") == [(0,)]
    assert "cannot connect" in alarms["commitment pacs"]
    assert alarms["commitment pacs"].endswith(
        "what was sent stays here until it is committed, or set another commit for this destination"
    )


@pytest.mark.parametrize("pacs", [{"commits": False}, {}], indirect=True)
def test_where_nobody_commits_what_is_listed_is_verified_and_stays(pacs, buffer, asks, alarms):
    uids = send(buffer, 3)
    pacs.status, pacs.holds = 0x0211, set(uids[:2])
    one = asks()
    assert one.step(20)
    assert states(buffer) == {"verified": 2, "sent": 1}
    assert buffer.purge(1e9, 0) == 0
    assert ("does not take 1.2.840.10008.1.20.1" in alarms["commitment pacs"]) or (
        "N-ACTION was answered 0x0211" in alarms["commitment pacs"]
    )
    n_asked = len(pacs.asked)
    send(buffer, 1, now=30, first=8)
    one.step(50)
    assert len(pacs.asked) == n_asked, "not asked again so soon"
    one.step(50 + 5 * HOUR_S)
    assert states(buffer) == {"verified": 2, "sent": 2}, "what is not listed is not taken as lost"


def test_a_pacs_that_begins_to_commit_is_believed(pacs, buffer, asks, alarms):
    uids = send(buffer, 2)
    pacs.status, pacs.holds = 0x0110, set(uids)
    one = asks()
    one.step(20)
    assert states(buffer) == {"verified": 2}
    pacs.status = 0
    one.step(20 + 5 * HOUR_S)
    assert states(buffer) == {"committed": 2}


@pytest.mark.parametrize("pacs", [{"commits": False, "finds": False}], indirect=True)
def test_where_neither_works_all_stays_and_is_told(pacs, buffer, asks, alarms):
    send(buffer, 2)
    asks().step(20)
    assert states(buffer) == {"sent": 2}
    assert "does not take 1.2.840.10008.5.1.4.1.2.2.1; allow it there" in alarms["commitment pacs"]


def test_the_query_names_study_series_and_instance(pacs, buffer, asks):
    (uid,) = pacs.holds = send(buffer, 1, enough="verified")
    asks("verify").step(20)
    assert states(buffer) == {"verified": 1}
    (query,) = pacs.queries
    assert (query.QueryRetrieveLevel, query.SOPInstanceUID) == ("IMAGE", uid)
    assert (query.StudyInstanceUID, query.SeriesInstanceUID) == (STUDY, SERIES)
    assert pacs.asked == []


def test_what_is_lost_three_times_waits_for_people(pacs, buffer, asks, alarms):
    send(buffer, 1)
    one = asks()
    for n in range(3):
        one.step(20 + 100 * n)
        buffer.outbox.mark_sent(buffer.outbox.claim("pacs", 50 + 100 * n), 50 + 100 * n, enough="committed")
    assert states(buffer) == {"quarantined": 1}
    one.step(500)
    assert alarms["lost pacs"] == (
        "destination 'pacs': took 1 instances and did not keep them; they are kept in quarantine"
    )
    with buffer.database.transaction() as conn:
        conn.execute("UPDATE deliveries SET state = 'held'")
    one.step(501)
    assert alarms["lost pacs"] == ""


def test_a_batch_waits_for_more_but_not_for_long(pacs, buffer, asks):
    pacs.silent = True
    one = asks()
    send(buffer, 2, now=100)
    assert not one.step(101)
    send(buffer, 1, now=105, first=5)
    assert one.step(110.5)
    assert len(pacs.asked[0][1]) == 3
