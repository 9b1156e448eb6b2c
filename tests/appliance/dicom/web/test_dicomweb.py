# SPDX-License-Identifier: Apache-2.0
"""The DICOMweb service over real sockets: in by STOW-RS, found by QIDO-RS, out by WADO-RS; and what must not work."""

import http.client
import json
import socket
import ssl
import subprocess
import tarfile
import time
from email import message_from_bytes
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from appliance.dicom.admit import admit_next
from appliance.dicom.describe import describe
from appliance.dicom.identity import uids_of
from appliance.dicom.negotiation import DEFLATED
from appliance.dicom.part10 import split
from appliance.errors import ConfigError

DATA = Path(__file__).parents[5] / "shared" / "data"
FILES = ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "rtplan.dcm")


def bundled(name):
    return Path(get_testdata_file(name)).read_bytes()


def parts_of(answer, data):
    message = message_from_bytes(b"Content-Type: " + answer.headers["Content-Type"].encode() + b"\r\n\r\n" + data)
    return [part.get_payload(decode=True) for part in message.get_payload()]


def reasons(body):
    return [item["00081197"]["Value"][0] for item in body["00081198"]["Value"]]


def test_what_goes_in_comes_out_with_its_data_set_byte_identical(web):
    one = web()
    files = [bundled(name) for name in FILES]
    status, body = one.stow(*files)
    assert status == 200
    assert len(body["00081199"]["Value"]) == len(files)
    admit_next(one.buffer, {}, lambda key, text: None, 1)
    for file in files:
        parts = split(file)
        _, uid = uids_of(parts.dataset, parts.transfer_syntax_uid)
        found = [row for row in one.find("/instances") if row["00080018"]["Value"] == [uid]]
        study, series = (found[0][tag]["Value"][0] for tag in ("0020000D", "0020000E"))
        path = f"/studies/{study}/series/{series}/instances/{uid}"
        got = [split(data) for data in parts_of(*one.ask("GET", path))]
        assert bytes(parts.dataset) in {bytes(each.dataset) for each in got}
        assert parts.transfer_syntax_uid in {each.transfer_syntax_uid for each in got}
    assert one.ask("GET", "/studies/1.2.3")[0].status == 404


def real_files():
    """Every Part 10 file of the scanner data, by name; of each series the first twelve."""
    paths = [path for part in ("pydicom_data", "vendors") for path in (DATA / part).rglob("*") if path.is_file()]
    files = {path.name: path.read_bytes() for path in sorted(paths)}
    for path in sorted((DATA / "series").glob("*.tar.xz")):
        with tarfile.open(path) as archive:
            members = [member for member in archive.getmembers() if member.isfile()][:12]
            files |= {f"{path.name}/{one.name}": archive.extractfile(one).read() for one in members}
    return {name: file for name, file in files.items() if file[128:132] == b"DICM"}


@pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")
def test_every_real_file_goes_in_and_comes_out_with_its_data_set_byte_identical(web):
    one = web()
    files = {name: split(file) for name, file in real_files().items()}
    refused = {}
    for name, file in real_files().items():
        status, body = one.stow(file)
        if status != 200:
            refused[name] = status, reasons(body)
    deflated = [name for name, parts in files.items() if parts.transfer_syntax_uid in DEFLATED]
    assert refused == dict.fromkeys(deflated, (409, [0xC122]))
    while admit_next(one.buffer, {}, lambda key, text: None, 1):
        pass
    sent = {bytes(parts.dataset): study_of(parts) for name, parts in files.items() if name not in deflated}
    got = set()
    for study in set(sent.values()) - {""}:
        got |= {bytes(split(data).dataset) for data in parts_of(*one.ask("GET", f"/studies/{study}"))}
    assert got == {dataset for dataset, study in sent.items() if study}, "four say no study: no address leads to them"
    assert (len(files) > 100, len(sent) - len(got)) == (True, 4)
    print(f"{len(files)} files, {len(deflated)} deflated refused, {len(sent)} different, {len(got)} came back")


def study_of(parts):
    return describe(parts.dataset, parts.transfer_syntax_uid)[0].get("StudyInstanceUID", "")


@pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")
def test_hostile_files_take_nothing_down(web):
    one = web()
    codes = {}
    for path in sorted((DATA / "malformed_generated").glob("*.dcm")):
        codes[path.name], body = one.stow(path.read_bytes())
        assert codes[path.name] in (200, 409), (path.name, body)
    assert codes["35_deflate_bomb_200MB.dcm"] == codes["00_empty.dcm"] == codes["02_not_dicom_html.dcm"] == 409
    assert one.stow(bundled("CT_small.dcm"))[0] == 200


def test_a_large_instance_in_small_pieces(web):
    one = web()
    file = bundled("CT_small.dcm") + bytes(3_000_000)
    assert one.stow(file)[0] == 200
    (row,) = one.find("/instances")
    path = f"/studies/{row['0020000D']['Value'][0]}"
    assert [bytes(split(data).dataset) for data in parts_of(*one.ask("GET", path))] == [bytes(split(file).dataset)]


def test_partly_stored_twice_and_in_another_study(web):
    one = web()
    status, body = one.stow(bundled("CT_small.dcm"), b"no dicom", bundled("CT_small.dcm"))
    assert (status, len(body["00081199"]["Value"]), reasons(body)) == (202, 2, [0xC000])
    assert one.buffer.counts()["received"] == 1
    status, body = one.stow(bundled("MR_small.dcm"), path="/studies/1.2.3")
    assert (status, reasons(body)) == (409, [0xA900])
    study = one.find("/studies")[0]["0020000D"]["Value"][0]
    assert one.stow(bundled("CT_small.dcm"), path=f"/studies/{study}")[0] == 200
    assert one.stow(bundled("CT_small.dcm"), content_type="image/png")[0] == 409


def test_search(web):
    one = web()
    one.stow(*(bundled(name) for name in ("CT_small.dcm", "MR_small.dcm")))
    assert len(one.find("/studies")) == 2
    assert [row["00080060"]["Value"] for row in one.find("/series?Modality=CT")] == [["CT"]]
    assert [row["00201209"]["Value"] for row in one.find("/series?00080060=MR")] == [[1]]
    assert one.find("/studies?PatientName=Comp*")[0]["00100010"]["Value"][0]["Alphabetic"].startswith("Comp")
    assert one.find("/studies?PatientName=comp*") == 204
    assert len(one.find("/studies?StudyDate=20030101-20051231")) == 2
    assert one.find("/studies?StudyDate=-19991231") == 204
    assert one.find("/studies?StudyDate=20260101-") == 204
    assert len(one.find("/instances?limit=1")) == 1
    assert one.find("/instances?limit=1&offset=2") == 204
    assert one.find("/instances?limit=x") == 400
    assert one.find("/instances?Nonsense=1") == 400
    assert one.find("/instances?PatientID=%27%20OR%201=1") == 204


def test_search_by_every_key_that_the_standard_asks_for(web):
    """PS3.18 table 10.6.1-5; an empty value matches everything (PS3.4 C.2.2.2.3)."""
    one = web()
    one.stow(*(bundled(name) for name in ("CT_small.dcm", "MR_small.dcm")))
    (study,) = one.find("/studies?ModalitiesInStudy=CT")
    assert study["00080061"]["Value"] == ["CT"]
    assert one.find("/studies?00080061=M?")[0]["00080061"]["Value"] == ["MR"]
    assert one.find("/studies?ModalitiesInStudy=US") == 204
    parts = split(bundled("CT_small.dcm"))
    (instance,) = one.find(f"/instances?SOPInstanceUID={parts.sop_instance_uid},1.2.3")
    assert one.find(f"/instances?00080016={parts.sop_class_uid}") == [instance]
    assert len(one.find(f"/series?StudyInstanceUID={study['0020000D']['Value'][0]}&SeriesInstanceUID=")) == 1
    assert len(one.find("/studies?PatientID=&AccessionNumber=&StudyTime=&StudyID=&ReferringPhysicianName=*")) == 2
    assert one.find("/series?PatientBirthDate=-20990101") == 204, "what is not there is in no range"
    for found in (study, instance):
        (url,) = found["00081190"]["Value"]
        base = f"http://127.0.0.1:{one.server.port}"
        assert url.startswith(f"{base}/studies/")
        got = parts_of(*one.ask("GET", url.removeprefix(base)))
        assert [bytes(split(data).dataset) for data in got] == [bytes(parts.dataset)]


def test_commitment(web):
    one = web()
    one.stow(bundled("CT_small.dcm"))
    parts = split(bundled("CT_small.dcm"))

    def item(uid):
        return {
            "00081150": {"vr": "UI", "Value": [parts.sop_class_uid]},
            "00081155": {"vr": "UI", "Value": [uid]},
        }

    asked = {"00081199": {"vr": "SQ", "Value": [item(parts.sop_instance_uid), item("1.2.3")]}}
    answer, data = one.ask("POST", "/commitment-requests/2.25.5", json.dumps(asked))
    body = json.loads(data)
    assert answer.status == 200
    assert body["00081199"]["Value"][0]["00081155"]["Value"] == [parts.sop_instance_uid]
    assert reasons(body) == [0x0112]
    asked = {"00081199": {"vr": "SQ", "Value": [{**item(parts.sop_instance_uid), "00081150": item("1.2")["00081155"]}]}}
    assert reasons(json.loads(one.ask("POST", "/commitment-requests/2.25.6", json.dumps(asked))[1])) == [0x0119]
    assert one.ask("POST", "/commitment-requests/2.25.5", b"[" * 100_000)[0].status == 400


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("multipart/related", b"x", 415),
        ('multipart/related; type="application/dicom+json"; boundary=B', b"--B--", 415),
        ("multipart/related; boundary=B", b"no boundary at all", 400),
        ("multipart/related; boundary=B", b"--B\r\n\r\nhalf a part", 400),
        ("multipart/related; boundary=B", b"--B--", 400),
        ("multipart/related; boundary=B", b"--B\r\n\r\n\r\n" * 100_002, 400),
    ],
)
def test_bodies_that_are_none(web, content_type, body, status):
    one = web()
    assert one.ask("POST", "/studies", body, Content_Type=content_type)[0].status == status
    assert one.buffer.counts()["received"] == 0
    assert one.stow(bundled("CT_small.dcm"))[0] == 200


def test_a_content_length_that_lies_keeps_whole_parts_and_nothing_of_the_torn_one(web):
    one = web()
    whole = b"--B\r\n\r\n" + bundled("CT_small.dcm") + b"\r\n--B\r\n\r\n" + bundled("MR_small.dcm")[:5000]
    head = b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; boundary=B\r\n"
    sock = socket.create_connection(("127.0.0.1", one.server.port), timeout=10)
    sock.sendall(head + b"Content-Length: %d\r\n\r\n" % (len(whole) + 99999) + whole)
    until(lambda: one.server.status()["uploads"] == 1)
    sock.close()
    until(lambda: one.server.status()["uploads"] == 0)
    one.buffer.index()
    assert one.buffer.counts()["received"] == 1


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_below_the_reserve_it_says_507(web):
    one = web(reserve_bytes=10**18)
    status, body = one.stow(bundled("CT_small.dcm"))
    assert (status, reasons(body)) == (507, [0xA700])
    assert "reserved" in one.told[0]


def test_uploads_have_slots_and_half_requests_take_none(web):
    one = web(max_uploads=1)
    half = [socket.create_connection(("127.0.0.1", one.server.port)) for _ in range(40)]
    for sock in half:
        sock.sendall(b"POST /studies HTTP/1.1\r\nHo")
    busy = socket.create_connection(("127.0.0.1", one.server.port))
    busy.sendall(
        b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; boundary=B\r\n"
        b"Content-Length: 1000\r\n\r\n--B\r\n"
    )
    until(lambda: one.server.status()["uploads"] == 1)
    assert one.stow(bundled("CT_small.dcm"))[0] == 503
    busy.close()
    until(lambda: one.server.status()["uploads"] == 0)
    assert one.stow(bundled("CT_small.dcm"))[0] == 200
    for sock in half:
        sock.close()


def test_a_token_is_needed_where_one_is_set(web, tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    one = web(token_file=tmp_path / "token")
    assert one.ask("GET", "/studies")[0].status == 401
    assert one.ask("GET", "/studies", Authorization="Bearer wrong")[0].status == 401
    assert one.ask("GET", "/studies", Authorization="Bearer s3cret")[0].status == 204


@pytest.fixture
def tls_files(tmp_path):
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = [*new, "-subj", "/CN=x", "-keyout", "k", "-out", "c"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return {"certificate": str(tmp_path / "c"), "key": str(tmp_path / "k")}


def anybody():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_https(web, tls_files):
    one, context = web(tls=tls_files), anybody()
    connection = http.client.HTTPSConnection("127.0.0.1", one.server.port, timeout=10, context=context)
    connection.request("GET", "/studies")
    assert connection.getresponse().status == 204
    connection.close()


def test_https_takes_no_cipher_that_dicom_over_tls_does_not(web, tls_files):
    one, context = web(tls=tls_files), anybody()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA256")  # CBC: BCP 195 wants AEAD
    with socket.create_connection(("127.0.0.1", one.server.port), timeout=10) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw)


def test_tls_files_that_are_none_are_told(web, tmp_path):
    (tmp_path / "c").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"listen\.dicomweb\.tls: files cannot be used"):
        web(tls={"certificate": str(tmp_path / "c"), "key": str(tmp_path / "c")})


@pytest.mark.peer
def test_orthanc_stows_to_us(web, orthanc):
    one = web()
    url = f"http://127.0.0.1:{one.server.port}/"
    orthanc.ask("PUT", "/dicom-web/servers/nearscan", {"Url": url})
    import urllib.request

    for name in ("CT_small.dcm", "MR_small.dcm"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{orthanc.http_port}/instances", bundled(name), method="POST"
        )
        urllib.request.urlopen(request, timeout=10).read()
    orthanc.ask("POST", "/dicom-web/servers/nearscan/stow", {"Resources": orthanc.get("/instances")})
    assert one.buffer.counts()["received"] == 2
    assert len(one.find("/studies")) == 2
    assert len(json.loads(orthanc.ask("POST", "/dicom-web/servers/nearscan/qido", {"Uri": "/studies"}))) == 2


@pytest.mark.peer
def test_orthanc_finds_and_retrieves_what_we_hold(web, orthanc):
    one = web()
    files = [bundled(name) for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm")]
    assert one.stow(*files)[0] == 200
    studies = [{"Study": row["0020000D"]["Value"][0]} for row in one.find("/studies")]
    orthanc.ask("PUT", "/dicom-web/servers/nearscan", {"Url": f"http://127.0.0.1:{one.server.port}/"})
    orthanc.ask("POST", "/dicom-web/servers/nearscan/retrieve", {"Resources": studies})
    got = {bytes(split(file).dataset) for file in orthanc.files()}
    assert got == {bytes(split(file).dataset) for file in files}
