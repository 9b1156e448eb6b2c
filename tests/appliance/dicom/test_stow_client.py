# SPDX-License-Identifier: Apache-2.0
"""STOW-RS delivery: to a real Orthanc, and to servers that answer everything that a server may."""

import json
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from delivering import send_all
from pydicom import dcmread

from appliance.buffer import NewInstance
from appliance.dicom.deliver import Destination
from appliance.dicom.mr_image import instances
from appliance.dicom.part10 import dataset_of
from appliance.dicom.request_commitment import RequestCommitment
from appliance.dicom.stow_client import StowConnection
from appliance.errors import DeliveryError
from appliance.settings import Buffer as Waits
from appliance.settings import DicomwebDestination

UIDS = ("1.2.840.10008.5.1.4.1.1.2", "1.2.3", "1.2.840.10008.1.2.1")
DATASET = b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100"


class Server:
    """Answers every request with `code` and `body`; remembers what came."""

    def __init__(self):
        self.code, self.body, self.got = 200, b"{}", []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.got.append((self.path, self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
                self.answer()

            def do_OPTIONS(self):
                outer.got.append((self.path, self.headers, b""))
                self.answer()

            do_GET = do_OPTIONS

            def answer(self):
                self.send_response(outer.code)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/dicom-web/"


@pytest.fixture
def server():
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def connect(server, **more):
    return StowConnection("pacs", DicomwebDestination(url=server.url, timeout_s=2, **more))


def failure(reason):
    return json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}).encode()


def test_what_arrives_is_one_part10_file_in_a_multipart_body(server):
    with connect(server) as link:
        assert link.store(*UIDS, memoryview(DATASET)) == 0
        assert link.store(*UIDS, memoryview(DATASET)) == 0
    path, headers, body = server.got[0]
    assert path == "/dicom-web/studies"
    assert headers["Accept"] == "application/dicom+json"
    message = message_from_bytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body)
    (part,) = message.get_payload()
    assert message.get_param("type") == part.get_content_type() == "application/dicom"
    file = part.get_payload(decode=True)
    assert bytes(dataset_of(file)) == DATASET
    assert dcmread(BytesIO(file)).file_meta.MediaStorageSOPInstanceUID == "1.2.3"


@pytest.mark.parametrize(
    ("code", "body", "permanent", "words"),
    [
        (202, failure(0xA700), False, "0xA700 (out of resources); will try again"),
        (409, failure(0x0122), True, "0x0122 (it does not take this SOP class)"),
        (200, failure(0xC000), True, "0xC000"),
        (409, b"<html>Mrs. Secret</html>", False, "was answered 409: will try again"),
        (400, b"", True, "STOW-RS was answered 400 (it does not understand the request); look at the instance"),
        (413, b"", True, "413 (too large for it)"),
        (401, b"", False, "was answered 401: it does not know us; check token_file"),
        (404, b"", False, "was answered 404: will try again"),
        (503, b"", False, "was answered 503: will try again"),
        (301, b"", False, "was answered 301: will try again"),
    ],
)
def test_answers(server, code, body, permanent, words):
    server.code, server.body = code, body
    with connect(server) as link, pytest.raises(DeliveryError) as caught:
        link.store(*UIDS, memoryview(DATASET))
    assert caught.value.permanent == permanent
    assert words in str(caught.value)
    assert "Secret" not in str(caught.value)


def test_a_token_is_read_for_each_request_and_never_told(server, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    with connect(server, token_file=tmp_path / "token") as link:
        link.echo()
        (tmp_path / "token").unlink()
        with pytest.raises(DeliveryError, match="No such file") as caught:
            link.echo()
    assert server.got[0][1]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(caught.value)


def test_nobody_there_and_a_server_that_hangs_up(server):
    server.http.shutdown()
    server.http.server_close()
    with connect(server) as link, pytest.raises(DeliveryError, match="no answer: Connection refused; will try again"):
        link.echo()


@pytest.mark.peer
def test_orthanc_takes_what_we_stow_once(buffer, make_spooled, orthanc):
    built = [one for n in range(3) for one in instances(make_spooled(n), 5)]
    for one in built:
        buffer.put_instance(NewInstance(**{**vars(one), "destinations": ("web",)}), 1)
    peer = DicomwebDestination(url=f"http://127.0.0.1:{orthanc.http_port}/dicom-web")
    alarms = {}
    destination = Destination("web", peer, buffer, Waits(), alarms.__setitem__)
    send_all(destination, 2)
    assert buffer.counts()["sent"] == 6, alarms
    stored = {dcmread(BytesIO(file)).SOPInstanceUID: bytes(dataset_of(file)) for file in orthanc.files()}
    assert stored == {one.sop_instance_uid: bytes(dataset_of(one.data)) for one in built}


@pytest.mark.peer
def test_what_orthanc_lists_is_verified_and_what_it_does_not_list_is_not(buffer, make_spooled, orthanc):
    for one in [one for n in range(2) for one in instances(make_spooled(n), 5)]:
        buffer.put_instance(NewInstance(**{**vars(one), "destinations": ("web",)}), 1)
    peer = DicomwebDestination(url=f"http://127.0.0.1:{orthanc.http_port}/dicom-web", commit="verify")
    alarms = {}
    destination = Destination("web", peer, buffer, Waits(), alarms.__setitem__)
    destination.step(2)
    destination._hang_up()
    orthanc.ask("DELETE", f"/instances/{orthanc.get('/instances')[0]}")
    assert RequestCommitment("web", peer, buffer, alarms.__setitem__).step(20)
    assert (buffer.counts()["verified"], buffer.counts()["sent"]) == (3, 1)
    orthanc.ask("DELETE", f"/studies/{orthanc.get('/studies')[0]}")
    assert RequestCommitment("web", peer, buffer, alarms.__setitem__).step(400)
    assert (buffer.counts()["verified"], buffer.counts()["sent"]) == (3, 1)
    assert buffer.purge(1e9, 0) == 3
    assert not any(alarms.values())


ONE = {"00080018": {"vr": "UI", "Value": ["1.2.3"]}}


@pytest.mark.parametrize(
    ("code", "body", "there"),
    [
        (200, [ONE], True),
        (200, [{"00080018": {"vr": "UI", "Value": ["1.2.4"]}}, ONE], True),
        (200, [{"00080018": {"vr": "UI", "Value": ["1.2.30"]}}], False),
        (200, [], False),
        (204, None, False),
    ],
)
def test_an_instance_is_there_only_when_it_is_listed_by_its_own_uid(server, code, body, there):
    server.code, server.body = code, b"" if body is None else json.dumps(body).encode()
    with connect(server) as link:
        assert link.has_instance("1.1", "1.5", "1.2.3") == there
        assert link.has_instance("", "", "1.2.3") == there
    assert [path for path, _, _ in server.got] == [
        "/dicom-web/studies/1.1/series/1.5/instances?SOPInstanceUID=1.2.3",
        "/dicom-web/instances?SOPInstanceUID=1.2.3",
    ]


@pytest.mark.parametrize(
    ("code", "body", "permanent", "words"),
    [
        (400, b"", True, "QIDO-RS was answered 400; allow it there"),
        (404, b"", True, "QIDO-RS was answered 404; allow it there"),
        (501, b"", True, "QIDO-RS was answered 501; allow it there"),
        (503, b"", False, "was answered 503"),
        (401, b"", False, "check token_file"),
        (200, b"{", False, "the answer to QIDO-RS cannot be read"),
        (200, b'[{"00080018": 1}]', False, "the answer to QIDO-RS cannot be read"),
        (200, b"[" * 100_000, False, "the answer to QIDO-RS cannot be read"),
    ],
)
def test_a_search_that_fails_says_nothing_about_the_instance(server, code, body, permanent, words):
    server.code, server.body = code, body
    with connect(server) as link, pytest.raises(DeliveryError, match=words) as error:
        link.has_instance("1.1", "1.5", "1.2.3")
    assert error.value.permanent == permanent
