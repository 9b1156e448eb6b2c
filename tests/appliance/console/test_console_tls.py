# SPDX-License-Identifier: Apache-2.0
"""The console by HTTPS, and what it does when the accounts' file or the audit cannot be used."""

import contextlib
import json
import socket
import ssl
import subprocess
import time

import pytest
from console_bench import PASSWORDS, PATIENCE_S, Bench
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from appliance import http_deadline
from appliance.console.serve import run
from appliance.errors import ConfigError
from appliance.settings import Settings


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    files = {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")}
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
    subprocess.run(
        [*new, "-subj", "/CN=mri-1", "-keyout", files["key"], "-out", files["certificate"]],
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture
def secure(tmp_path, certificate):
    bench = Bench(tmp_path, kiosk=[], tls=certificate)
    yield bench
    bench.close()


@pytest.fixture
def strict(tmp_path):
    bench = Bench(tmp_path, kiosk=[])
    yield bench
    bench.close()


@pytest.mark.peer
def test_by_https_the_cookie_never_goes_out_in_plain_text(secure):
    answer, body = secure.try_sign_in("viewer", PASSWORDS["viewer"])
    cookie = answer.getheader("set-cookie")
    name = f"__Host-nearscan-{secure.settings.console.port}="
    assert cookie.startswith(name)
    assert {part.strip() for part in cookie.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=strict", "Secure"}
    assert answer.getheader("strict-transport-security") == "max-age=2592000"
    signed = {"Cookie": cookie.partition(";")[0], "X-CSRF-Token": json.loads(body)["csrf"]}
    own, plain = f"https://{secure.address}", f"http://{secure.address}"
    assert secure.ask("GET", "/api/status", Origin=own, **signed)[0].status == 200
    assert secure.ask("GET", "/api/status", Origin=plain, **signed)[0].status == 421
    with pytest.raises(InvalidStatus), live(secure, Origin=plain, Cookie=signed["Cookie"]):
        pass
    with live(secure, Origin=own, Cookie=signed["Cookie"]) as page:
        page.ping().wait(PATIENCE_S)
        assert secure.ask("POST", "/api/sign-out", "", **signed)[0].status == 200
        with pytest.raises(ConnectionClosed):
            page.recv(PATIENCE_S)


def live(bench, **headers):
    address = f"wss://{bench.address}/ws/live?pipeline=mri-live"
    return connect(address, proxy=None, ssl=bench.trust(), additional_headers=headers)


@pytest.mark.peer
def test_plain_http_and_old_tls_get_nothing(secure):
    with socket.create_connection(secure.address.split(":"), timeout=PATIENCE_S) as plain:
        plain.sendall(f"GET /sign-in HTTP/1.1\r\nHost: {secure.address}\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            assert plain.recv(1000) == b""
    for version, code in (("-tls1_1", 1), ("-tls1_2", 0), ("-tls1_3", 0)):
        command = ["openssl", "s_client", "-connect", secure.address, version, "-cipher", "ALL:@SECLEVEL=0"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S)
        assert done.returncode == code, (version, done.stdout)


@pytest.mark.peer
def test_handshakes_that_do_not_end_keep_nobody_out_and_are_bounded(secure):
    with contextlib.ExitStack() as stack:
        ends = []
        for _ in range(http_deadline.MOST_OF_ADDRESS + 100):
            one = socket.create_connection(secure.address.split(":"), PATIENCE_S, ("127.0.0.3", 0))
            ends.append(stack.enter_context(one))
        assert secure.ask("GET", "/sign-in")[0].status == 200
        until(lambda: sum(is_hung_up(one) for one in ends) >= 100)
    assert secure.ask("GET", "/sign-in", source="127.0.0.3")[0].status == 200


def is_hung_up(one):
    one.settimeout(0.0)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.peer
def test_a_client_certificate_may_be_asked_for(tmp_path, certificate):
    bench = Bench(tmp_path, kiosk=["127.0.0.1"], tls={**certificate, "ca": certificate["certificate"]})
    try:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            bench.ask("GET", "/sign-in")
    finally:
        bench.close()


def test_a_network_without_tls_is_not_listened_on(strict):
    console = {"port": strict.settings.console.port, "bind": "0.0.0.0"}
    site = {"name": "x", "data_dir": strict.settings.site.data_dir}
    with pytest.raises(
        ConfigError, match=r"console\.bind: '0\.0\.0\.0' serves a network without TLS, where passwords and"
    ):
        run(Settings.model_validate({"site": site, "console": console}), strict.process)
    files = {"certificate": "/nothing.crt", "key": "/nothing.key"}
    with pytest.raises(ConfigError, match=r"console\.tls: files cannot be used"):
        run(Settings.model_validate({"site": site, "console": {**console, "tls": files}}), strict.process)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (got := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return got


def test_a_damaged_accounts_file_raises_an_alarm_keeps_sessions_and_lets_nobody_in(strict):
    signed, whole = strict.sign_in("viewer"), strict.accounts.file.read_bytes()
    strict.accounts.file.write_bytes(b"{")
    text = until(lambda: strict.process.alarms.get("accounts"))
    assert text.startswith(f"accounts: {strict.accounts.file} is not what 'nearscan users' writes")
    assert strict.ask("GET", "/api/status", **signed.headers)[0].status == 200
    answer, body = strict.try_sign_in("viewer", PASSWORDS["viewer"])
    assert (answer.status, json.loads(body)) == (503, {"error": f"sign-in: nobody can sign in now: {text}"})
    strict.accounts.file.write_bytes(whole)
    until(lambda: strict.process.alarms["accounts"] == "")
    strict.sign_in("viewer")


def test_without_an_accounts_file_nobody_is_anybody(strict):
    signed = strict.sign_in("viewer")
    strict.accounts.file.unlink()
    until(lambda: strict.ask("GET", "/api/status", **signed.headers)[0].status == 401)
    assert strict.try_sign_in("viewer", PASSWORDS["viewer"])[0].status == 401


def test_an_audit_that_cannot_be_written_raises_an_alarm_and_people_still_come_in(strict):
    database = strict.settings.site.data_dir / "nearscan.sqlite"
    database.mkdir()
    strict.sign_in("viewer")
    assert strict.process.alarms["audit"].startswith("sign-ins are not in the audit, but in the log: buffer: ")
    database.rmdir()
    strict.sign_in("viewer")
    assert strict.process.alarms["audit"] == ""


def test_the_page_is_told_of_the_consoles_own_alarms(strict):
    signed = strict.sign_in("viewer")

    def told():
        strict.tell("console", alarms={"audit": "sign-ins are not in the audit"})
        alarms = json.loads(strict.ask("GET", "/api/status", **signed.headers)[1])["alarms"]
        return [(alarm["process"], alarm["key"], alarm["text"]) for alarm in alarms]

    assert until(told) == [("console", "audit", "sign-ins are not in the audit")]
