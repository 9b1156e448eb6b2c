# SPDX-License-Identifier: Apache-2.0
"""Our requestor against pynetdicom's acceptor, and against peers that stall, lie and hang up."""

import socket
import struct
import threading
from contextlib import suppress

import pytest
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import MRImageStorage, Verification

from appliance.dicom.association import ECHO_CONTEXT, Association
from appliance.errors import DeliveryError
from appliance.settings import DicomDestination

MR = (str(MRImageStorage), "1.2.840.10008.1.2")
DATASET = b"\x08\x00\x18\x00\x06\x00\x00\x001.2.3\x00"  # (0008,0018) 1.2.3


def peer(port, **more):
    return DicomDestination(host="127.0.0.1", port=port, ae_title="PEER", **{"timeout_s": 5, **more})


def test_echo_and_many_stores_on_one_association(scp):
    port, got = scp()
    with Association("pacs", peer(port), [ECHO_CONTEXT, MR]) as assoc:
        assoc.echo()
        for n in range(5):
            assert assoc.store(MR[0], f"1.2.{n}", MR[1], memoryview(DATASET)) == 0
    assert [one.sop_instance_uid for one in got] == [f"1.2.{n}" for n in range(5)]
    assert all(one.data.endswith(DATASET) and one.peer == "NEARSCAN" for one in got)


@pytest.mark.parametrize("longest", [4096, 16382])
def test_a_large_data_set_arrives_whole_in_the_peers_pdu_size(scp, longest):
    port, got = scp(longest_pdu=longest)
    large = DATASET + bytes(range(256)) * 8192
    with Association("pacs", peer(port), [MR]) as assoc:
        assoc.store(MR[0], "1.2.3", MR[1], memoryview(large))
    assert got[0].data.endswith(large)


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0107, 0x0116])
def test_success_and_warnings_are_stored(scp, status):
    port, _ = scp(status)
    with Association("pacs", peer(port), [MR]) as assoc:
        assert assoc.store(MR[0], "1.2.3", MR[1], memoryview(DATASET)) == status


@pytest.mark.parametrize(
    ("status", "permanent", "words"),
    [
        (0xA700, False, "out of resources"),
        (0xA7FF, False, "out of resources"),
        (0x0110, False, "processing failure"),
        (0x0124, False, "does not authorise us"),
        (0x0213, False, "resource limitation"),
        (0x4242, False, "unknown status"),
        (0x0111, True, "holds this UID already"),
        (0x0117, True, "invalid object instance"),
        (0x0122, True, "does not take this SOP class"),
        (0xA801, True, "does not take this SOP class"),
        (0xA900, True, "data set does not match its SOP class"),
        (0xA9FF, True, "data set does not match its SOP class"),
        (0xC000, True, "cannot understand the data set"),
        (0xCFFF, True, "cannot understand the data set"),
    ],
)
def test_a_failure_status_says_whether_to_try_again_and_the_association_lives_on(scp, status, permanent, words):
    port, got = scp(status)
    with Association("pacs", peer(port), [MR]) as assoc:
        for _ in range(2):
            with pytest.raises(DeliveryError, match=f"C-STORE was answered 0x{status:04X} .*{words}") as caught:
                assoc.store(MR[0], "1.2.3", MR[1], memoryview(DATASET))
            assert (caught.value.permanent, caught.value.status) == (permanent, status)
    assert len(got) == 2


def test_a_sop_class_that_the_peer_does_not_take_is_permanent(monkeypatch):
    monkeypatch.setattr(_config, "UNRESTRICTED_STORAGE_SERVICE", False)
    ae = AE("PEER")
    ae.add_supported_context(Verification)
    ae.add_supported_context(MRImageStorage, "1.2.840.10008.1.2.1")
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
    try:
        with Association("pacs", peer(server.server_address[1]), [ECHO_CONTEXT, MR]) as assoc:
            assoc.echo()
            with pytest.raises(DeliveryError, match=r"does not take SOP class .* in transfer syntax") as caught:
                assoc.store(MR[0], "1.2.3", MR[1], memoryview(DATASET))
            assert caught.value.permanent
    finally:
        server.shutdown()


def test_a_rejection_is_transient_and_says_why():
    ae = AE("PEER")
    ae.require_called_aet = True
    ae.add_supported_context(Verification)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        wrong = peer(server.server_address[1]).model_copy(update={"ae_title": "WRONG"})
        with pytest.raises(DeliveryError, match=r"called AE title not recognised; check the AE titles") as caught:
            Association("pacs", wrong, [ECHO_CONTEXT])
        assert not caught.value.permanent
    finally:
        server.shutdown()


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    wanted = f"destination 'pacs' at 127.0.0.1:{port}: cannot connect: Connection refused; check host, port"
    with pytest.raises(DeliveryError, match=wanted) as caught:
        Association("pacs", peer(port), [ECHO_CONTEXT])
    assert not caught.value.permanent


def answering(*answers, then_close=True):
    """A peer that reads something and writes each of `answers` in turn; gives the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def run():
        with server, server.accept()[0] as conn:
            for answer in answers:
                conn.recv(1 << 20)
                conn.sendall(answer)
            while not then_close and conn.recv(1 << 20):
                pass

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "hung up"),
        (b"\x02\0\0\0", "hung up"),
        (b"\x02\0\xff\xff\xff\xff", "a PDU of 4294967295 bytes was announced"),
        (b"\x02\0\0\0\0\x04\0\0\0\0", "A-ASSOCIATE-AC lacks its maximum length"),
        (b"\x07\0\0\0\0\x04\0\0\0\0", "answered with PDU type 0x07"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "was announced"),
    ],
)
def test_a_peer_that_speaks_no_dicom_is_transient(answer, words):
    with pytest.raises(DeliveryError, match=f"no association: .*{words}") as caught:
        Association("pacs", peer(answering(answer)), [ECHO_CONTEXT])
    assert not caught.value.permanent


def test_a_peer_that_never_answers_meets_the_deadline():
    with pytest.raises(DeliveryError, match="no association: no answer in time; will try again"):
        Association("pacs", peer(answering(b"", then_close=False), timeout_s=0.2), [ECHO_CONTEXT])


def relay(port, cut):
    """A proxy that gives what comes back to `cut(bytes)` and closes when that says None."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source, sink, change):
        try:
            while data := source.recv(1 << 16):
                data = change(data)
                if data is None:
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def run():
        with server:
            client = server.accept()[0]
            upstream = socket.create_connection(("127.0.0.1", port))
        with client, upstream:
            forth = threading.Thread(target=pump, args=(client, upstream, lambda data: data), daemon=True)
            forth.start()
            pump(upstream, client, cut)
            forth.join()

    threading.Thread(target=run, daemon=True).start()
    return server.getsockname()[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: None if data[0] == 4 else data, "the association broke: "),
        (lambda data: b"\x07\0\0\0\0\x04\0\0\0\0" if data[0] == 4 else data, "the peer aborted"),
        (lambda data: struct.pack(">BxI", 4, 1 << 30) if data[0] == 4 else data, "bytes was announced"),
        (lambda data: struct.pack(">BxIIBB", 4, 6, 2, 9, 3) if data[0] == 4 else data, "no command of this"),
    ],
)
def test_a_lost_or_broken_answer_is_unknown_so_it_is_tried_again(scp, change, words):
    port, got = scp()
    with (
        pytest.raises(DeliveryError, match=words) as caught,
        Association("pacs", peer(relay(port, change)), [MR]) as assoc,
    ):
        assoc.store(MR[0], "1.2.3", MR[1], memoryview(DATASET))
    assert (caught.value.permanent, caught.value.status) == (False, None)
    assert len(got) == 1
