# SPDX-License-Identifier: Apache-2.0
"""The listener: what every kind of peer gets, and that nobody takes it from another."""

import itertools
import os
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
import warnings

import pytest
from receivers import Scp

from appliance.dicom import dimse, negotiation
from appliance.dicom.accepted import Limits
from appliance.dicom.acceptor import CALLED_UNKNOWN, Acceptor, Slots
from appliance.dicom.association import ECHO_CONTEXT, Association
from appliance.dicom.identity import uids_of
from appliance.dicom.inbound import Inbound
from appliance.errors import ConfigError, DeliveryError, PeerError, StorageError
from appliance.settings import DicomDestination, ListenTls
from appliance.tls import server_context

EXPLICIT = "1.2.840.10008.1.2.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
DEADLINE_S = 10


def element(tag, vr, value):
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def dataset(uid="1.2.3", n_bytes=3000):
    pixels = struct.pack("<HH2sxxI", 0x7FE0, 0x0010, b"OB", n_bytes) + bytes(n_bytes)
    return element(0x00080016, b"UI", CT.encode()) + element(0x00080018, b"UI", uid.encode()) + pixels


class Services(Scp):
    def __init__(self, **settings):
        self.got, self.status, self.ends = [], 0, []
        self.server = Acceptor(("127.0.0.1", 0), self, **settings)

    def ended(self, association, *, released):
        self.ends.append(released)


@pytest.fixture
def listener():
    made = []

    def make(**settings):
        made.append(Services(**settings))
        return made[-1]

    yield make
    for one in made:
        one.server.close()


def peer(one, timeout_s=DEADLINE_S):
    return DicomDestination(host="127.0.0.1", port=one.server.address[1], ae_title="PEER", timeout_s=timeout_s)


def echo(one):
    with Association("peer", peer(one), [ECHO_CONTEXT]) as assoc:
        assoc.echo()


def connect(one):
    sock = socket.create_connection(one.server.address, timeout=DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def read_all(sock):
    """Everything that comes until the other side closes."""
    parts = b""
    try:
        while part := sock.recv(65536):
            parts += part
    except ConnectionResetError:
        pass
    return parts


def opened(one, *contexts):
    sock = connect(one)
    sock.sendall(negotiation.request("TEST", "PEER", contexts or [(CT, EXPLICIT)]))
    header = sock.recv(6, socket.MSG_WAITALL)
    assert header[0] == dimse.ASSOCIATE_AC, header
    sock.recv(struct.unpack(">I", header[2:])[0], socket.MSG_WAITALL)
    return sock


def pdus(data, *, command, context_id=1, longest=16384):
    return b"".join(dimse.p_data(context_id, data, longest, command=command))


def store(uid="1.2.3", sop_class=CT, data=None):
    data = dataset(uid) if data is None else data
    return pdus(dimse.store_rq(7, sop_class, uid), command=True) + pdus(data, command=False)


def status_of(sock):
    header = sock.recv(6, socket.MSG_WAITALL)
    assert header[0] == dimse.P_DATA, header
    body = sock.recv(struct.unpack(">I", header[2:])[0], socket.MSG_WAITALL)
    values = dimse.read_command(next(dimse.fragments(body))[3])
    assert values[0x0120] == struct.pack("<H", 7)
    return int.from_bytes(values[0x0900], "little")


ABORT_BY_PROVIDER = bytes([7, 0, 0, 0, 0, 4, 0, 0, 2])


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PDU type 0x47 is none"),
        (b"\x01\0" + struct.pack(">I", 0xFFFFFFFF), "a PDU of 4294967295 bytes was announced"),
        (
            b"\x01\0" + struct.pack(">I", 72) + b"\0\1" + bytes(66) + b"\x20\0\xff\xff",
            "the A-ASSOCIATE PDU cannot be read",
        ),
        (b"\x04\0" + struct.pack(">I", 4) + bytes(4), ""),
        (b"\x05\0" + struct.pack(">I", 4) + bytes(4), ""),
        (b"\x02\0" + struct.pack(">I", 4) + bytes(4), ""),
    ],
)
def test_garbage_before_an_association_is_aborted(listener, caplog, raw, reason):
    one = listener()
    sock = connect(one)
    sock.sendall(raw)
    assert read_all(sock)[:1] == b"\x07"
    sock.close()
    assert reason in caplog.text
    echo(one)


def edited(pdu, at, value):
    return pdu[:at] + bytes([value]) + pdu[at + 1 :]


COMMAND = dimse.store_rq(7, CT, "1.2.3")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (pdus(dataset(), command=False), "pieces are out of order"),
        (pdus(COMMAND, command=True, context_id=9), "presentation context 9 was not accepted"),
        (pdus(COMMAND, command=True) * 2, "pieces are out of order"),
        (pdus(COMMAND[:20], command=True), "a command set"),
        (pdus(b"\x08\0\x18\0\x04\0\0\0" + bytes(4), command=True), "a command set holds (0008,0018)"),
        (struct.pack(">BxIIBB", 4, 6, 200, 1, 3), "a P-DATA-TF holds a value of 200 bytes"),
        (struct.pack(">BxIBB", 4, 2, 0, 0), "a P-DATA-TF ends inside a value"),
        (struct.pack(">BxI", 4, 0xFFFFFFF0), "bytes was announced"),
        (b"".join(struct.pack(">BxIIBB", 4, 1006, 1002, 1, 1) + bytes(1000) for _ in range(70)), "set is too long"),
        (pdus(dimse.response(1, 7, 0, CT, "1.2"), command=True), "a response 0x8001 to nothing"),
        (pdus(COMMAND, command=True) + dimse.RELEASE_RQ_PDU, "released in the middle of a message"),
        (b"\x09\0\0\0\0\x04" + bytes(4), "PDU type 0x09 is none"),
        (b"\x03\0\0\0\0\x04" + bytes(4), ""),
    ],
)
def test_a_broken_message_is_aborted_and_nothing_is_kept(listener, caplog, raw, reason):
    one = listener()
    sock = opened(one)
    sock.sendall(raw)
    assert read_all(sock).startswith(ABORT_BY_PROVIDER)
    sock.close()
    assert reason in caplog.text
    assert one.got == []
    echo(one)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (store(), 0),
        (store(sop_class="1.2.840.10008.5.1.4.1.1.4"), 0x0122),
        (store("../../etc/passwd", data=dataset()), 0x0117),
        (store("1" * 65, data=dataset()), 0x0117),
        (store("", data=dataset()), 0x0117),
        (pdus(dimse._command(dimse._us(0x0100, 0x0020) + dimse._us(0x0110, 7) + dimse._us(0x0800, 1)), command=True)
         + pdus(b"\0" * 10, command=False), 0x0211),
        (pdus(COMMAND.replace(b"\0\0\0\x08\x02\0\0\0\x01\0", b"\0\0\0\x08\x02\0\0\0\x01\x01"), command=True), 0xC000),
    ],
)  # fmt: skip
def test_what_is_asked_is_answered_by_the_standards_status_and_the_association_lives(listener, raw, status):
    one = listener()
    sock = opened(one)
    for _ in range(2):
        sock.sendall(raw)
        assert status_of(sock) == status
    assert len(one.got) == (2 if status == 0 else 0)
    sock.sendall(dimse.RELEASE_RQ_PDU)
    assert read_all(sock)[:1] == b"\x06"
    sock.close()
    until(lambda: one.ends)
    assert one.ends == [True]


def until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_disk_that_fails_in_the_middle_refuses_one_and_takes_the_next(listener):
    one = listener()
    real = one.store

    def failing(incoming):
        writer = real(incoming)

        def write(data):
            raise StorageError("buffer: not written: No space left on device")

        writer.write = write
        return writer

    sock = opened(one)
    one.store = failing
    sock.sendall(store(data=dataset(n_bytes=1_000_000)))
    assert status_of(sock) == 0xA700
    one.store = real
    sock.sendall(store())
    assert status_of(sock) == 0
    sock.close()
    assert len(one.got) == 1


def test_a_connection_cut_at_every_byte_keeps_only_what_is_whole(listener):
    one = listener(slots=Slots(associations=2000, per_address=2000))
    raw = store(data=dataset(n_bytes=40))
    for cut in range(len(raw) + 1):
        sock = opened(one)
        sock.sendall(raw[:cut])
        if cut == len(raw):
            assert status_of(sock) == 0
        sock.close()
    until(lambda: one.server.status()["associations"] == 0)
    assert [received.data.endswith(dataset(n_bytes=40)) for received in one.got] == [True]
    assert one.ends == [False] * (len(raw) + 1)


def test_pieces_of_any_size_give_the_same_instance(listener):
    one = listener()
    sock = opened(one)
    for longest in (7, 100, 16384, 131072, negotiation.LONGEST_PDU):
        data = dataset(n_bytes=4000 if longest == 7 else 600_001)
        sock.sendall(pdus(COMMAND, command=True, longest=longest) + pdus(data, command=False, longest=longest))
        assert status_of(sock) == 0
        assert one.got[-1].data.endswith(data)
    sock.close()


def test_a_thousand_silent_connections_keep_nobody_out(listener):
    one = listener(slots=Slots(silent=32))
    silent = [connect(one) for _ in range(1000)]
    echo(one)
    with Association("peer", peer(one), [(CT, EXPLICIT)]) as assoc:
        assert assoc.store(CT, "1.2.3", EXPLICIT, memoryview(dataset())) == 0
    assert one.server.status()["silent"] <= 32
    for sock in silent:
        sock.close()


def test_a_silent_connection_and_a_trickled_request_end_at_their_time(listener):
    one = listener(limits=Limits(artim_s=0.3))
    silent, trickle = connect(one), connect(one)
    request = negotiation.request("TEST", "PEER", [ECHO_CONTEXT])
    for byte in request[:5]:
        trickle.sendall(bytes([byte]))
    assert read_all(silent) == read_all(trickle) == b""
    silent.close()
    trickle.close()
    echo(one)


def test_a_trickled_pdu_in_an_association_is_aborted(listener, caplog):
    one = listener(limits=Limits(pdu_s=0.3))
    sock = opened(one)
    sock.sendall(store()[:100])
    assert read_all(sock)[:1] == b"\x07"
    sock.close()
    assert "it was silent for too long, or sent a PDU too slowly" in caplog.text


def test_without_a_thread_left_one_is_let_go_and_the_next_is_served(listener, monkeypatch):
    one = listener()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
        sock = connect(one)
        assert read_all(sock) == b""
        sock.close()
    assert one.server.status()["refused_no_thread"] == 1
    echo(one)


def test_slots_are_given_by_address_and_told(listener):
    one = listener(slots=Slots(per_address=2))
    held = [opened(one), opened(one)]
    with pytest.raises(DeliveryError, match="local limit exceeded"):
        echo(one)
    held[0].close()
    until(lambda: one.server.status()["associations"] == 1)
    echo(one)
    held[1].close()


def test_who_is_not_welcome_is_rejected_with_the_reason(listener, caplog):
    one = listener(refusal=lambda request, address: CALLED_UNKNOWN if request.called_ae_title != "US" else None)
    with pytest.raises(DeliveryError, match="called AE title not recognised"):
        echo(one)
    assert "(NEARSCAN): rejected" in caplog.text
    assert one.ends == []


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A CA and two certificates of it, made by OpenSSL."""
    folder = tmp_path_factory.mktemp("tls")
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "9",
    ]
    for name in ("ca", "ours", "theirs", "stranger"):
        by = ["-CA", "ca.crt", "-CAkey", "ca.key"] if name in ("ours", "theirs") else []
        command = [*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt", *by]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.peer
def test_tls_with_dcmtk_both_sides_known(listener, certificates, caplog):
    from pydicom.data import get_testdata_file

    names = {"certificate": "ours.crt", "key": "ours.key", "ca": "ca.crt"}
    files = {key: certificates / name for key, name in names.items()}
    one = listener(tls=server_context(ListenTls(**files), "listen.dicom_tls"), limits=Limits(artim_s=2))

    def send(who):
        own = ["+tls", f"{who}.key", f"{who}.crt", "+cf", "ca.crt"]
        command = [
            "storescu",
            *own,
            "-aec",
            "PEER",
            "127.0.0.1",
            str(one.server.address[1]),
            get_testdata_file("CT_small.dcm"),
        ]
        return subprocess.run(command, cwd=certificates, env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True)

    garbage, silent = connect(one), connect(one)
    garbage.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
    assert send("theirs").returncode == 0
    assert len(one.got) == 1
    assert send("stranger").returncode != 0
    assert len(one.got) == 1
    read_all(garbage)
    assert read_all(silent) == b""
    until(lambda: "no TLS" in caplog.text or "not begun" in caplog.text)
    garbage.close()
    silent.close()


def test_old_tls_is_refused(listener, certificates):
    files = {"certificate": certificates / "ours.crt", "key": certificates / "ours.key"}
    one = listener(tls=server_context(ListenTls(**files), "listen.dicom_tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1_1
    sock = connect(one)
    with pytest.raises(ssl.SSLError):
        context.wrap_socket(sock).close()
    sock.close()


def test_files_that_are_no_certificate_are_told(certificates):
    with pytest.raises(
        ConfigError, match=r"a\.key: files cannot be used .*; check that they are PEM files, belong together"
    ):
        server_context(ListenTls(certificate=certificates / "ours.crt", key=certificates / "theirs.key"), "a.key")


def test_contexts_that_are_not_taken_are_refused_one_by_one(listener):
    one = listener()
    contexts = [
        (CT, EXPLICIT),
        ("1.2.840.10008.5.1.4.1.2.2.1", EXPLICIT),  # Study Root FIND
        (CT, "1.2.840.10008.1.2.1.99"),  # Deflated
        ("1.3.12.2.1107.5.9.1", EXPLICIT),  # a private storage class
    ]
    sock = connect(one)
    sock.sendall(negotiation.request("TEST", "PEER", contexts))
    header = sock.recv(6, socket.MSG_WAITALL)
    pdu = header + sock.recv(struct.unpack(">I", header[2:])[0], socket.MSG_WAITALL)
    accepted, longest = negotiation.accepted(pdu)
    assert accepted == {1: EXPLICIT, 7: EXPLICIT}
    assert longest == negotiation.LONGEST_PDU
    sock.close()


@pytest.mark.peer
def test_dcmtk(listener, tmp_path):
    from pydicom.data import get_testdata_file

    one = listener()
    environment = {**os.environ, "TCP_NODELAY": "1"}
    port = str(one.server.address[1])
    subprocess.run(["echoscu", "-aec", "PEER", "127.0.0.1", port], check=True, env=environment)
    files = {
        "-xw": get_testdata_file("JPEG2000.dcm"),
        "-x=": get_testdata_file("CT_small.dcm"),
        "-xi": get_testdata_file("MR_small_implicit.dcm"),
        "-xb": get_testdata_file("MR_small_bigendian.dcm"),
        "-xr": get_testdata_file("MR_small_RLE.dcm"),
    }
    for option, file in files.items():
        subprocess.run(["storescu", option, "-aec", "PEER", "127.0.0.1", port, file], check=True, env=environment)
    assert len(one.got) == len(files)


def test_fuzz_pdus_in_process():
    """100,000 mutated PDUs: each is taken, or refused as the peer's fault."""
    random.seed(1)
    seeds = [
        negotiation.request("TEST", "PEER", [(CT, EXPLICIT), ECHO_CONTEXT]),
        store(),
        pdus(dimse.echo_rq(1), command=True),
        dimse.RELEASE_RQ_PDU,
        dimse.ABORT_PDU,
    ]
    taken = refused = 0
    for n in range(100_000):
        raw = bytearray(seeds[n % len(seeds)])
        for _ in range(random.randint(1, 4)):
            kind, at = random.random(), random.randrange(len(raw)) if raw else 0
            if kind < 0.6 and raw:
                raw[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
            elif kind < 0.8:
                del raw[at : at + random.randint(1, 9)]
            else:
                raw[at:at] = random.randbytes(random.randint(1, 9))
        try:
            handle(bytes(raw))
            taken += 1
        except PeerError:
            refused += 1
    print(f"fuzz: {taken + refused} PDUs in process, {taken} taken, {refused} refused")
    assert taken > 1000 and refused > 1000


def handle(raw):
    """What an association does with the bytes of one PDU, without its threads."""
    ours, theirs = FakeSocket(raw), None
    inbound = Inbound(ours)
    try:
        kind = inbound.next_pdu(time.monotonic() + 1)
    except (EOFError, TimeoutError):
        return theirs
    if kind == 1:
        negotiation.agree(negotiation.read_request(inbound.whole_pdu()), frozenset())
    elif kind == 4:
        for _, is_command, _, piece in dimse.fragments(inbound.body):
            if is_command:
                dimse.read_command(bytes(piece))
            else:
                uids_of(piece, EXPLICIT)
                uids_of(piece, "1.2.840.10008.1.2")
    return None


class FakeSocket:
    def __init__(self, raw):
        self.raw = raw

    def settimeout(self, seconds):
        pass

    def setsockopt(self, *_):
        pass

    def recv_into(self, view):
        n = min(len(view), len(self.raw))
        view[:n], self.raw = self.raw[:n], self.raw[n:]
        return n


def test_fuzz_over_sockets(listener):
    """10,000 mutated messages over real sockets, echoes in between; nothing but whole instances is kept."""
    random.seed(2)
    one = listener(limits=Limits(artim_s=0.5, pdu_s=0.5, idle_s=0.5), slots=Slots(per_address=64))
    counter, failures = itertools.count(), []

    def work():
        while (n := next(counter)) < 10_000:
            request, message = negotiation.request("TEST", "PEER", [(CT, EXPLICIT)]), store(data=dataset(n_bytes=20))
            raw = bytearray(request + message)
            at = random.randrange(len(request), len(raw)) if n % 4 else random.randrange(len(raw))
            raw[at] ^= 1 << random.randrange(8)
            try:
                sock = connect(one)
                sock.sendall(raw)
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
                sock.close()
                if n % 1000 == 0:
                    echo(one)
            except (ConnectionError, DeliveryError) as error:
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: one.server.status()["associations"] == 0)
    print(f"fuzz: 10000 messages over sockets, {len(one.got)} kept, {len(failures)} connections refused by the system")
    assert not [error for error in failures if isinstance(error, DeliveryError)]
    echo(one)
