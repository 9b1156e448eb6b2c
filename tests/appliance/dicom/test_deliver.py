# SPDX-License-Identifier: Apache-2.0
"""The outbox of one destination, round by round: time is a parameter, the acceptor's answers are scripted."""

import logging
import threading
from io import BytesIO

import pytest
from pydicom import dcmread

from appliance.buffer import Buffer, NewInstance
from appliance.buffer.segments import Place
from appliance.dicom.build_results import build_next
from appliance.dicom.deliver import Deliverer, Destination, _only_deliverer
from appliance.dicom.spool import pack
from appliance.errors import StorageError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomDestination, Settings


@pytest.fixture
def owe(buffer, make_spooled):
    """Owe `n` images to "pacs"."""

    def put(n, priority=5, first=0):
        buffer.put_jobs([pack(make_spooled(first + k, denoised=False), priority) for k in range(n)], 1)
        while build_next(buffer, lambda key, text: None, 1):
            pass

    return put


@pytest.fixture
def alarms():
    return {}


@pytest.fixture
def destination(buffer, alarms):
    made = []

    def make(port):
        peer = DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", timeout_s=5)
        made.append(Destination("pacs", peer, buffer, Waits(retry_min_s=1, retry_max_s=60), alarms.__setitem__))
        return made[-1]

    yield make
    for one in made:
        one._hang_up()


def states(buffer):
    counts = buffer.counts()
    return {name: counts[name] for name in ("queued", "sending", "sent", "held", "quarantined") if counts[name]}


def test_everything_arrives_in_order_priority_first(buffer, owe, destination, scp):
    port, got = scp()
    owe(3)
    owe(2, priority=9, first=10)
    one = destination(port)
    assert one.step(1)
    assert not one.step(1)
    assert states(buffer) == {"sent": 5}
    numbers = [dcmread(BytesIO(received.data)).InstanceNumber for received in got]
    assert numbers == [11, 12, 1, 2, 3]


def test_the_bytes_that_arrive_are_those_that_were_kept(buffer, owe, destination, scp):
    port, got = scp()
    owe(1)
    digest, *place = buffer.database.query("SELECT digest, segment, position FROM instances")[0]
    kept = buffer.segments.read(Place(*place), digest)
    destination(port).step(1)
    assert got[0].data[-2 * 48 * 32 :] == kept[-2 * 48 * 32 :]
    assert len(got[0].data) - got[0].data.index(b"\x08\x00\x05\x00") == len(kept) - kept.index(b"\x08\x00\x05\x00")


def test_a_permanent_status_quarantines_that_one_and_the_rest_go_on(buffer, owe, destination, scp, alarms):
    owe(3)
    uids = [row[0] for row in buffer.database.query("SELECT sop_instance_uid FROM instances ORDER BY id")]
    port, _ = scp(lambda received: 0xC000 if received.sop_instance_uid == uids[1] else 0)
    destination(port).step(1)
    assert states(buffer) == {"sent": 2, "quarantined": 1}
    assert "C-STORE was answered 0xC000 (it cannot understand the data set)" in alarms["quarantine pacs"]
    assert alarms["quarantine pacs"].endswith("the instance is kept in quarantine")
    assert alarms["destination pacs"] == ""


def test_out_of_resources_leaves_the_destination_alone_then_all_arrive(buffer, owe, destination, scp, alarms):
    owe(4)
    port, got = scp(0xA700)
    one = destination(port)
    one.step(1)
    assert (len(got), states(buffer)) == (1, {"queued": 4})
    assert "0xA700 (out of resources); will try again" in alarms["destination pacs"]
    assert not one.step(1.1)
    assert len(got) == 1
    port, got = scp(0)
    one.step(3)
    one.step(5)
    assert states(buffer) == {"sent": 4}
    assert len(got) == 4
    assert alarms["destination pacs"] == ""


def test_another_transient_status_delays_only_that_instance(buffer, owe, destination, scp):
    owe(3)
    first = buffer.database.query("SELECT sop_instance_uid FROM instances ORDER BY id LIMIT 1")[0][0]
    port, _ = scp(lambda received: 0x0110 if received.sop_instance_uid == first else 0)
    one = destination(port)
    one.step(1)
    assert states(buffer) == {"sent": 2, "queued": 1}
    port, _ = scp(0)
    assert not one.step(1.2)
    assert one.step(3)
    assert states(buffer) == {"sent": 3}


def test_waits_double_with_jitter_up_to_the_longest_and_never_end(buffer, owe, destination):
    owe(1)
    server_gone = destination(1)  # nobody listens on port 1
    now, waits = 0.0, []
    for _ in range(12):
        server_gone.step(now + 1000)
        waits.append(server_gone._closed_until - (now + 1000))
        now = server_gone._closed_until
    for n, wait in enumerate(waits):
        assert min(60, 2**n) * 0.5 <= wait <= min(60, 2**n)
    assert states(buffer) == {"queued": 1}
    assert server_gone.status()["state"] == "waiting"
    assert "cannot connect" in server_gone.status()["last_error"]


def test_while_it_waits_a_destination_is_probed_and_not_sent_to(buffer, owe, destination, scp):
    owe(2)
    port, _ = scp()
    one = destination(1)
    one.step(1)
    attempts = buffer.database.query("SELECT max(attempts) FROM deliveries")[0][0]
    one.step(1000)
    assert attempts == buffer.database.query("SELECT max(attempts) FROM deliveries")[0][0] == 0
    assert states(buffer) == {"queued": 2}
    one._peer = one._peer.model_copy(update={"port": port})
    one.step(2000)
    assert states(buffer) == {"sent": 2}


def test_an_object_damaged_on_disk_is_quarantined_and_not_sent(buffer, owe, destination, scp, alarms, tmp_path):
    owe(2)
    segment, position, n_bytes = buffer.database.query("SELECT segment, position, n_bytes FROM instances ORDER BY id")[
        0
    ]
    with (tmp_path / "data" / "segments" / segment).open("r+b") as file:
        file.seek(position + 64 + n_bytes - 1)
        file.write(b"\xa5")
    port, got = scp()
    destination(port).step(1)
    assert states(buffer) == {"sent": 1, "quarantined": 1}
    assert "was altered on the disk" in alarms["quarantine pacs"]
    assert len(got) == 1


def test_what_is_no_part10_file_is_quarantined(buffer, destination, scp, alarms):
    port, _ = scp()
    buffer.put_instance(NewInstance(b"x" * 400, "1.2.840.10008.5.1.4.1.1.4", "1.2", "1.2.840.10008.1.2",
                                    destinations=("pacs",)), 1)  # fmt: skip
    destination(port).step(1)
    assert states(buffer) == {"quarantined": 1}
    assert "is not a Part 10 file" in alarms["quarantine pacs"]


def test_what_a_killed_deliverer_was_sending_is_sent_again(buffer, owe, destination, scp):
    owe(3)
    buffer.outbox.claim("pacs", 1, 2)
    port, _ = scp()
    destination(port).step(2)
    assert states(buffer) == {"sent": 3}


def test_one_association_carries_many_and_is_released_when_idle(buffer, owe, destination, scp):
    port, _ = scp()
    one = destination(port)
    owe(2)
    one.step(1)
    assoc = one._assoc
    owe(2, first=10)
    one.step(3)
    assert one._assoc is assoc
    one.step(4)
    assert one._assoc is assoc
    one.step(9)
    assert one._assoc is None


def test_no_patient_in_any_log_line_status_or_alarm(buffer, owe, destination, scp, alarms, caplog):
    caplog.set_level(logging.DEBUG)
    owe(2)
    one = destination(1)
    one.step(1)
    port, _ = scp(0xC123)
    one._peer = one._peer.model_copy(update={"port": port})
    one.step(99)
    told = caplog.text + str(alarms) + str(one.status()) + str(buffer.counts())
    for secret in ("Muster", "Erika", "4711", "19641112", "ACC-9"):
        assert secret not in told


def settings(tmp_path, port):
    site = {"name": "box", "data_dir": tmp_path / "data"}
    pacs = {"dicom": {"host": "127.0.0.1", "port": port, "ae_title": "PEER"}}
    waits = {"reserve_gb": 0, "retry_min_s": 0.1, "retry_max_s": 0.5}
    return Settings.model_validate({"site": site, "destinations": {"pacs": pacs}, "buffer": waits})


def test_a_second_deliverer_of_one_buffer_is_refused(tmp_path, scp):
    port, _ = scp()
    deliverer = Deliverer(settings(tmp_path, port), lambda key, text: None)
    with (
        _only_deliverer(tmp_path / "data"),
        pytest.raises(StorageError, match=r"another process delivers from .*; stop it"),
    ):
        deliverer.run(threading.Event())
    deliverer.close()


def test_what_is_owed_to_a_destination_that_is_gone_raises_an_alarm(tmp_path, scp):
    port, _ = scp()
    buffer = Buffer(tmp_path / "data")
    buffer.put_instance(NewInstance(b"x", "1.2", "1.3", "1.2", destinations=("old",)), 1)
    buffer.close()
    alarms = {}
    deliverer = Deliverer(settings(tmp_path, port), alarms.__setitem__)
    deliverer._warn_of_unknown_destinations()
    deliverer.close()
    assert alarms == {
        "destination old": "deliver: 1 instances are owed to 'old', which is not in destinations; put it back"
    }


def test_a_rate_is_kept_on_average(buffer, owe, destination, scp, monkeypatch):
    owe(5)
    port, got = scp()
    one = destination(port)
    n_bytes = sum(row[0] for row in buffer.database.query("SELECT n_bytes FROM instances"))
    one._peer = one._peer.model_copy(update={"max_mb_s": n_bytes / 1e6 / 100})
    waits = []
    monkeypatch.setattr(one._stop, "wait", waits.append)
    assert one.step(1)
    assert len(got) == len(waits) == 5
    assert waits[-1] == pytest.approx(100, abs=5), "seconds for all of it"
    assert waits == sorted(waits), "nobody waited, so what is owed adds up"
