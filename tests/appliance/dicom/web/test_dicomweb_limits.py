# SPDX-License-Identifier: Apache-2.0
"""What a peer of the DICOMweb service cannot do: take the memory or everybody's place, or come in without a key."""

import json
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from appliance import http_deadline
from appliance.dicom.receive import Receiver
from appliance.errors import ConfigError
from appliance.settings import Settings

CT = Path(get_testdata_file("CT_small.dcm")).read_bytes()
HEAD = b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; boundary=B\r\n"
MIB = 1 << 20


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def connect(one, data=b""):
    sock = socket.create_connection(("127.0.0.1", one.server.port), timeout=20)
    sock.sendall(data)
    return sock


def is_open(sock):
    sock.settimeout(0.01)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


SERVER = """
import sys
from pathlib import Path
from appliance.buffer import Buffer
from appliance.dicom.admit import admit_next
from appliance.dicom.web.serve import WebServer
from appliance.settings import ListenDicomweb
def grown():
    return [int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
buffer = Buffer(Path(sys.argv[1]))
server = WebServer(ListenDicomweb(port=int(sys.argv[2])), buffer, lambda refused: None, buffer.index)
print("ready", flush=True)
for line in sys.stdin:
    admit_next(buffer, {}, lambda key, text: None, 1)
    print(grown(), flush=True)
server.close()
buffer.close()
"""


def test_an_instance_of_300_mib_goes_through_in_32_mib(tmp_path, free_port):
    command = [sys.executable, "-c", SERVER, str(tmp_path / "data"), str(free_port)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def peak():
        child.stdin.write("\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    def read_all(sock):
        n_bytes = 0
        while data := sock.recv(MIB):
            n_bytes += len(data)
        sock.close()
        return n_bytes

    with child:
        assert child.stdout.readline() == "ready\n"
        before = peak()
        pieces = [b"--B\r\n\r\n" + CT, *[bytes(MIB)] * 300, b"\r\n--B--"]
        head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % sum(map(len, pieces))
        sock = socket.create_connection(("127.0.0.1", free_port), timeout=60)
        for piece in (head, *pieces):
            sock.sendall(piece)
        assert sock.recv(12) == b"HTTP/1.1 200"
        sock.close()
        after_in = peak()
        found = socket.create_connection(("127.0.0.1", free_port), timeout=60)
        found.sendall(b"GET /studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        (study,) = json.loads(b"".join(iter(lambda: found.recv(MIB), b"")).partition(b"\r\n\r\n")[2])
        found.close()
        for _ in range(2):
            sock = socket.create_connection(("127.0.0.1", free_port), timeout=60)
            path = f"/studies/{study['0020000D']['Value'][0]}".encode()
            sock.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(sock) > 300 * MIB
        after_out = peak()
        child.stdin.close()
    assert child.returncode == 0
    print(f"300 MiB in: +{after_in - before} MiB, out: +{after_out - before} MiB")
    assert after_out - before < 32


def test_what_was_altered_on_the_disk_does_not_leave(web, tmp_path):
    one = web()
    assert one.stow(CT + bytes(3 * MIB))[0] == 200
    (row,) = one.find("/studies")
    (path,) = (tmp_path / "data" / "segments").iterdir()
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"\1")
    answer, data = one.ask("GET", f"/studies/{row['0020000D']['Value'][0]}")
    assert (answer.status, data) == (503, b"the buffer cannot be used now\n")


def test_three_hundred_that_ask_for_nothing_keep_nobody_out(web):
    one = web()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    silent = [connect(one, b"GET / HT" if n % 2 else b"") for n in range(http_deadline.MOST_WAITING + 50)]
    started = time.monotonic()
    assert one.stow(CT)[0] == 200
    assert time.monotonic() - started < http_deadline.REQUEST_S / 2, "it did not wait for their deadline"
    until(lambda: not is_open(silent[0]))
    assert is_open(silent[-1])
    for sock in silent:
        sock.close()


def test_an_address_does_not_take_every_upload_slot(web):
    one = web(max_uploads=4, max_per_address=2)
    busy = [connect(one, HEAD + b"Content-Length: 1000\r\n\r\n--B\r\n") for _ in range(2)]
    until(lambda: one.server.status()["uploads"] == 2)
    assert one.stow(CT)[0] == 503
    other = socket.create_connection(("127.0.0.1", one.server.port), timeout=20, source_address=("127.0.0.2", 0))
    body = b"--B\r\n\r\n" + CT + b"\r\n--B--"
    other.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert other.recv(12) == b"HTTP/1.1 200"
    for sock in (*busy, other):
        sock.close()


def test_an_address_in_a_header_is_no_other_address(web):
    one = web(max_uploads=4, max_per_address=2)
    busy = [connect(one, HEAD + b"Content-Length: 1000\r\n\r\n--B\r\n") for _ in range(2)]
    until(lambda: one.server.status()["uploads"] == 2)
    body = b"--B\r\n\r\n" + CT + b"\r\n--B--"
    third = connect(one, HEAD + b"X-Forwarded-For: 127.0.0.9\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert third.recv(12) == b"HTTP/1.1 503"
    for sock in (*busy, third):
        sock.close()


def test_a_body_that_trickles_is_cut_and_one_that_goes_on_is_not(web, monkeypatch):
    monkeypatch.setattr(http_deadline, "UPLOAD_S", 1.0)
    one = web(max_uploads=2, max_per_address=2)
    trickle = connect(one, HEAD + b"Content-Length: 100000\r\n\r\n--B\r\n")
    pieces = [b"--B\r\n\r\n" + CT, *[bytes(http_deadline.UPLOAD_BYTES)] * 20, b"\r\n--B--"]
    going_on = connect(one, HEAD + b"Content-Length: %d\r\n\r\n" % sum(map(len, pieces)))
    until(lambda: one.server.status()["uploads"] == 2)
    for piece in pieces:  # 2.2 s, longer than the deadline
        going_on.sendall(piece)
        if is_open(trickle):
            trickle.sendall(b"x")
        time.sleep(0.1)
    assert going_on.recv(12) == b"HTTP/1.1 200"
    assert not is_open(trickle)
    until(lambda: one.server.status()["uploads"] == 0)
    for sock in (trickle, going_on):
        sock.close()


def test_a_peer_that_does_not_read_its_answer_is_hung_up_on(web, monkeypatch):
    monkeypatch.setattr(http_deadline, "UNREAD_MS", 500)
    one = web()
    assert one.stow(CT + bytes(20 * MIB))[0] == 200
    (row,) = one.find("/studies")
    sock = connect(one)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.sendall(b"GET /studies/" + row["0020000D"]["Value"][0].encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    until(lambda: one.server.status()["connections"] == 1)
    until(lambda: one.server.status()["connections"] == 0)
    sock.close()


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer ", "s3cret", "Basic s3cret", "Bearer s3cret2"])
def test_what_is_not_the_token_is_refused(web, tmp_path, given):
    (tmp_path / "token").write_text("s3cret\n")
    one = web(token_file=tmp_path / "token")
    answer, _ = one.ask("GET", "/studies", Authorization=given)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert one.ask("GET", "/studies", Authorization="bearer s3cret")[0].status == 204
    for raw in (b"", b" \n", b"\xff"):  # as when it is being replaced
        (tmp_path / "token").write_bytes(raw)
        assert one.ask("GET", "/studies", Authorization=given)[0].status == 503
    (tmp_path / "token").unlink()
    assert one.ask("GET", "/studies", Authorization="Bearer s3cret")[0].status == 503


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, r"token_file: .*token cannot be read \(No such file or directory\); check it"),
        (b"\n", r"token_file: .*token is empty; write a token into it"),
        (b"\xff", r"token_file: .*token cannot be read \(not ASCII\)"),
    ],
)
def test_a_token_file_that_has_none_is_told_at_the_start(web, tmp_path, raw, words):
    if raw is not None:
        (tmp_path / "token").write_bytes(raw)
    with pytest.raises(ConfigError, match=words):
        web(token_file=tmp_path / "token")


def test_mutual_tls_lets_in_who_shows_a_certificate_of_the_ca(web, tmp_path):
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*new, "-subj", "/CN=x", "-keyout", "k", "-out", "c"], cwd=tmp_path, check=True, capture_output=True)
    files = {"certificate": str(tmp_path / "c"), "key": str(tmp_path / "k")}
    one = web(tls={**files, "ca": files["certificate"]})

    def ask(with_certificate):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if with_certificate:
            context.load_cert_chain(files["certificate"], files["key"])
        try:
            with context.wrap_socket(connect(one)) as sock:
                sock.sendall(b"GET /studies HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return sock.recv(12)
        except (ssl.SSLError, ConnectionError):
            return b""

    assert ask(True) == b"HTTP/1.1 204"
    assert ask(False) == b""


def test_a_conflict_by_stow_raises_the_alarm(tmp_path, free_port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        web_port = server.getsockname()[1]
    alarms = {}
    listen = {"dicom": {"port": free_port, "bind": "127.0.0.1"}, "dicomweb": {"port": web_port}}
    site = {"name": "box", "data_dir": tmp_path / "data"}
    receiver = Receiver(
        Settings.model_validate({"site": site, "listen": listen, "buffer": {"reserve_gb": 0}}), alarms.__setitem__
    )
    stop = threading.Event()
    thread = threading.Thread(target=receiver.run, args=(stop,))
    thread.start()
    try:
        until(lambda: receiver.port)
        for file in (CT, CT[:-2] + b"\1\2"):
            body = b"--B\r\n\r\n" + file + b"\r\n--B--"
            with socket.create_connection(("127.0.0.1", web_port), timeout=20) as sock:
                sock.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert sock.recv(12) == b"HTTP/1.1 200"
        until(lambda: alarms.get("receiver conflict") == "receive: one UID came with different bytes; both are kept")
    finally:
        stop.set()
        thread.join(20)
        receiver.close()
