# SPDX-License-Identifier: Apache-2.0
"""What we listen with: success only after the disk, every SOP class, failures by their name."""

import os
import subprocess
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from appliance.buffer import Buffer
from appliance.buffer.segments import Place
from appliance.dicom.association import Association
from appliance.dicom.mr_image import instances
from appliance.dicom.part10 import dataset_of
from appliance.dicom.receive import Receiver, addresses_of
from appliance.errors import ConfigError, DeliveryError, StorageError
from appliance.settings import DicomDestination, Settings
from appliance.simulate.pacs import count, run_pacs, serve_pacs

EXPLICIT = "1.2.840.10008.1.2.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
DATASET = b"\x08\x00\x18\x00\x06\x00\x00\x001.2.3\x00"


def send(port, sop_class=MR, uid="1.2.3", dataset=DATASET, syntax=EXPLICIT, called="PEER"):
    peer = DicomDestination(host="127.0.0.1", port=port, ae_title=called, timeout_s=5)
    with Association("peer", peer, [(sop_class, syntax)]) as assoc:
        return assoc.store(sop_class, uid, syntax, memoryview(dataset))


def test_the_data_set_is_kept_as_it_came_with_a_file_meta_of_its_uids(scp):
    port, got = scp()
    send(port, uid="1.2.3.4", dataset=b"garbage, not even DICOM!")
    (received,) = got
    assert bytes(dataset_of(received.data)) == b"garbage, not even DICOM!"
    assert (received.sop_class_uid, received.sop_instance_uid) == (MR, "1.2.3.4")
    assert (received.transfer_syntax_uid, received.peer) == (EXPLICIT, "NEARSCAN")


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.88.34", "1.2.3.4.5.6.7", "1.2.840.113619.4.30"])
def test_any_storage_class_is_taken_private_and_unknown_ones_too(scp, sop_class):
    port, got = scp()
    assert send(port, sop_class) == 0
    assert got[0].sop_class_uid == sop_class


@pytest.mark.parametrize("error", [StorageError("buffer: full"), StorageError("buffer: No space left on device")])
def test_what_cannot_be_kept_is_refused_as_out_of_resources(scp, error):
    def fail(received):
        raise error

    port, _ = scp(fail)
    with pytest.raises(DeliveryError, match="0xA700") as caught:
        send(port)
    assert not caught.value.permanent


def receiver(tmp_path, reserve_gb=0):
    return Receiver(
        Settings.model_validate(
            {
                "site": {"name": "box", "data_dir": tmp_path / "data"},
                "listen": {"dicom": {"ae_title": "NEARSCAN", "port": 11112, "bind": "127.0.0.1"}},
                "buffer": {"reserve_gb": reserve_gb},
            }
        ),
        lambda key, text: None,
    )


def run(one, port):
    one._listen = one._listen.model_copy(update={"port": port})
    stop = threading.Event()
    thread = threading.Thread(target=one.run, args=(stop,))
    thread.start()
    while not one.port:
        stop.wait(0.01)
        assert thread.is_alive()
    return stop, thread


@pytest.mark.peer
def test_the_receiver_keeps_what_storescu_sends(tmp_path, make_spooled, free_port):
    built = instances(make_spooled(), 5)
    for n, instance in enumerate(built):
        (tmp_path / f"{n}.dcm").write_bytes(instance.data)
    one = receiver(tmp_path)
    stop, thread = run(one, free_port)
    try:
        command = ["storescu", "-aec", "NEARSCAN", "127.0.0.1", str(free_port)]
        environment = {**os.environ, "TCP_NODELAY": "1"}
        for _ in range(2):
            subprocess.run([*command, *sorted(map(str, tmp_path.glob("*.dcm")))], check=True, env=environment)
        status = one.status()
        assert (status["received"], status["refused"], status["listener"]["accepted"]) == (4, 0, 2)
        one._buffer.index()
        inbox = Buffer(tmp_path / "data")
        counts = inbox.counts()
        assert (counts["received"], counts["conflicts"], counts["destinations"]) == (2, 0, {})
        for instance in built:
            columns = "SELECT digest, segment, position FROM instances WHERE sop_instance_uid = ?"
            ((digest, *place),) = inbox.database.query(columns, (instance.sop_instance_uid,))
            kept = inbox.segments.read(Place(*place), digest)
            assert bytes(dataset_of(kept))[-3072:] == bytes(dataset_of(instance.data))[-3072:]
        inbox.close()
    finally:
        stop.set()
        thread.join(20)
        one.close()


def test_only_listed_peers_may_send_once_there_is_a_list(tmp_path, free_port):
    def listed(**peer):
        one = receiver(tmp_path)
        one._peers = [(peer["ae_title"], addresses_of(peer["host"]))]
        stop, thread = run(one, free_port)
        try:
            send(free_port, called="NEARSCAN")
        finally:
            stop.set()
            thread.join(20)
            one.close()

    listed(ae_title="NEARSCAN", host="localhost")
    for wrong in ({"ae_title": "OTHER", "host": "localhost"}, {"ae_title": "NEARSCAN", "host": "192.0.2.1"}):
        with pytest.raises(DeliveryError, match="calling AE title not recognised"):
            listed(**wrong)


def test_what_a_killed_receiver_had_acknowledged_is_in_the_index_of_the_next(tmp_path, free_port):
    first = receiver(tmp_path)
    first._index = lambda index: None  # it dies before
    stop, thread = run(first, free_port)
    send(free_port, called="NEARSCAN")
    stop.set()
    thread.join(20)
    first.close()
    second = receiver(tmp_path)
    stop, thread = run(second, free_port)
    stop.set()
    thread.join(20)
    assert second._buffer.counts()["received"] == 1
    second.close()


def test_a_data_set_of_another_instance_is_refused(tmp_path, free_port):
    one = receiver(tmp_path)
    stop, thread = run(one, free_port)
    whole = b"\x08\x00\x16\x00UI\x1a\x00" + MR.encode() + b"\0" + b"\x08\x00\x18\x00UI\x06\x001.2.3\0"
    try:
        assert send(free_port, dataset=whole, called="NEARSCAN") == 0
        with pytest.raises(DeliveryError, match="0xA900"):
            send(free_port, uid="1.2.4", dataset=whole, called="NEARSCAN")
    finally:
        stop.set()
        thread.join(20)
    assert one._buffer.counts()["received"] == 1
    one.close()


def test_below_the_reserve_the_receiver_refuses_with_the_standards_status(tmp_path, free_port):
    one = receiver(tmp_path, reserve_gb=10_000)
    stop, thread = run(one, free_port)
    try:
        with pytest.raises(DeliveryError, match="0xA700"):
            send(free_port, called="NEARSCAN")
        assert one.status()["refused"] == 1
    finally:
        stop.set()
        thread.join(20)
        one.close()


def test_a_port_in_use_and_no_listener_are_told(tmp_path, scp):
    port, _ = scp()
    one = receiver(tmp_path)
    one._listen = one._listen.model_copy(update={"port": port})
    with pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1:{port}: .*; check listen.dicom"):
        one.run(threading.Event())
    one.close()
    with pytest.raises(ConfigError, match=r"receive: listen.dicom is not set"):
        Receiver(Settings.model_validate({"site": {"name": "box"}}), lambda key, text: None)


def test_the_simulated_pacs_counts_objects_not_transmissions(tmp_path):
    folder = tmp_path / "pacs"
    server = serve_pacs(folder, 0, "PACS")
    try:
        for uid in ("1.1", "1.2", "1.2", "../../../evil"):
            with nullcontext() if uid[0] == "1" else pytest.raises(DeliveryError, match="0x0117"):
                send(server.address[1], uid=uid, called="PACS")
    finally:
        server.close()
    assert count(folder) == 2
    assert {path.suffix for path in (folder / "segments").iterdir()} == {".segment"}
    assert not list(tmp_path.rglob("evil*"))


def test_the_simulated_pacs_comes_back_on_the_same_port(tmp_path, free_port):
    for n in range(2):
        stop = threading.Event()
        thread = threading.Thread(target=run_pacs, args=(Path(tmp_path), free_port, "PACS", stop))
        thread.start()
        for _ in range(1000):
            try:
                send(free_port, uid=f"1.2.{n}", called="PACS")
                break
            except DeliveryError:
                stop.wait(0.01)
        stop.set()
        thread.join(20)
    assert count(tmp_path) == 2
