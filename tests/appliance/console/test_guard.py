# SPDX-License-Identifier: Apache-2.0
"""What hostile requests get: each case with its stated outcome, over real sockets."""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from console_bench import PASSWORDS, PATIENCE_S, Bench
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from appliance import http_deadline
from appliance.console import sign_in
from appliance.console.app import Console
from appliance.console.guard import KIOSK_MAY
from appliance.console.sign_in_waits import Waits

MISSING = (403, "console: X-CSRF-Token is missing or not this session's; load the page again")
NOBODY = (401, "console: nobody is signed in; sign in first")
FOREIGN = (421, "console: this host name or origin is not ours; open the page by this machine's name or address")


@pytest.fixture
def strict(tmp_path):
    """A console whose kiosk and scraper are elsewhere."""
    bench = Bench(tmp_path, kiosk=["192.0.2.7"], metrics=["192.0.2.0/24"])
    yield bench
    bench.close()


def said(answered):
    answer, body = answered
    return answer.status, json.loads(body).get("error", "") if body else ""


def sign_out(bench, **headers):
    return said(bench.ask("POST", "/api/sign-out", "", **headers))


def live(bench, **headers):
    return connect(f"ws://{bench.address}/ws/live?pipeline=mri-live", proxy=None, additional_headers=headers)


def test_a_post_needs_the_csrf_token_of_its_own_session(strict):
    mine, others = strict.sign_in("engineer"), strict.sign_in("viewer")
    assert sign_out(strict, Cookie=mine.cookie) == MISSING
    for stolen in (others.csrf, mine.csrf[:-1], mine.csrf + "x", "", "\xff"):
        assert sign_out(strict, Cookie=mine.cookie, **{"X-CSRF-Token": stolen}) == MISSING
    assert sign_out(strict, **{"X-CSRF-Token": mine.csrf}) == NOBODY
    assert strict.ask("GET", "/api/status", **mine.headers)[0].status == 200, "the session is as it was"
    assert sign_out(strict, **mine.headers) == (200, "")
    assert sign_out(strict, **mine.headers) == NOBODY, "signed out: the cookie is worth nothing"
    with pytest.raises(InvalidStatus):
        live(strict, Cookie=mine.cookie)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"])
def test_every_method_that_may_change_something_needs_it(strict, method):
    mine = strict.sign_in("engineer")
    assert said(strict.ask(method, "/api/anything", "", Cookie=mine.cookie)) == MISSING


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://{}", "http://{}.evil.example", "{}", "\xff"]
)
def test_what_another_site_sends_is_refused_with_a_right_cookie_and_token_too(strict, origin):
    mine = strict.sign_in("engineer")
    foreign = {"Origin": origin.format(strict.address), **mine.headers}
    assert sign_out(strict, **foreign) == FOREIGN
    assert said(strict.ask("GET", "/api/status", **foreign)) == FOREIGN
    with pytest.raises(InvalidStatus):
        live(strict, Cookie=mine.cookie, Origin=foreign["Origin"])
    assert strict.ask("GET", "/api/status", Origin=f"http://{strict.address}", **mine.headers)[0].status == 200


def test_a_name_that_was_pointed_at_us_is_refused(strict):
    mine = strict.sign_in("engineer")
    for host in ("evil.example", f"evil.example:{strict.settings.console.port}", "127.0.0.1.evil.example", ""):
        rebound = {"Host": host, "Origin": f"http://{host}", **mine.headers}
        assert said(strict.ask("GET", "/api/status", **rebound)) == FOREIGN


def test_a_site_may_have_names(tmp_path):
    bench = Bench(tmp_path, names=["mri-1.hospital.example"])
    assert said(bench.ask("GET", "/api/status", Host="MRI-1.hospital.example:80"))[0] == 200
    assert said(bench.ask("GET", "/api/status", Host="mri-2.hospital.example")) == FOREIGN
    bench.close()


SPOOFED = [
    {"X-Forwarded-For": "192.0.2.7"},
    {"X-Forwarded-For": "192.0.2.7, 127.0.0.1"},
    {"Forwarded": "for=192.0.2.7"},
    {"X-Real-IP": "192.0.2.7"},
]


@pytest.mark.parametrize("spoofed", SPOOFED)
def test_an_address_in_a_header_makes_nobody_a_kiosk_or_a_scraper(strict, spoofed):
    assert said(strict.ask("GET", "/api/status", **spoofed)) == NOBODY
    assert said(strict.ask("GET", "/metrics", **spoofed)) == NOBODY
    with pytest.raises(InvalidStatus):
        live(strict, **spoofed)


def test_kiosks_and_scrapers_are_known_by_their_address(tmp_path):
    bench = Bench(tmp_path, kiosk=["127.0.0.8/30", "::1"], metrics=["127.0.0.2"])
    assert said(bench.ask("GET", "/metrics")) == NOBODY
    for source, status in (("127.0.0.9", 200), ("127.0.0.12", 401)):
        assert bench.ask("GET", "/api/status", source=source)[0].status == status
    for source, status in (("127.0.0.2", 200), ("127.0.0.9", 403), ("127.0.0.12", 401)):
        assert bench.ask("GET", "/metrics", source=source)[0].status == status
    assert bench.ask("GET", "/metrics", **bench.sign_in("viewer").headers)[0].status == 200
    assert bench.ask("GET", "/healthz", source="127.0.0.12")[0].status == 503, "for all; no process was heard of"
    bench.close()


def test_a_kiosk_sees_the_live_image_and_3d_and_nothing_else(bench):
    """Every address that the console has; a new one is closed until it is named in the guard and here."""
    shown = {
        "/",
        "/sign-in",
        "/api/sign-in",
        "/api/me",
        "/api/status",
        "/healthz",
        "/metrics",
        "/ws/live",
        "/ws/volume",
    }
    assert shown | {"/api/sign-out"} >= KIOSK_MAY
    paths = [getattr(route, "path", "") for route in Console(bench.settings, print).app().routes]
    assert len(paths) > 8
    for path in paths:
        if path.startswith("/static") or path in shown:
            continue
        path = re.sub("[{}]", "", path)
        assert bench.ask("GET", path)[0].status == (405 if path == "/api/sign-out" else 403), path
        assert said(bench.ask("POST", path, "")) == NOBODY, path


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2f..%2fconfig.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/static//etc/passwd",
        "/static/....//app.py",
        "/static/console.js%00.html",
        "/static/%ff",
        "/static",
        "/../etc/passwd",
        "/api/../../etc/passwd",
        "/api/%2e%2e/accounts.json",
    ],
)
def test_no_path_leads_out(strict, path):
    answer, body = strict.ask("GET", path, Cookie=strict.sign_in("engineer").cookie)
    assert answer.status in (307, 404), body
    assert b"import" not in body and b"root:" not in body and b"argon2" not in body


def test_a_session_is_never_one_that_was_there_before(strict):
    port = strict.settings.console.port
    planted = f"nearscan-{port}={'A' * 43}"
    answer, _ = strict.try_sign_in("viewer", PASSWORDS["viewer"], Cookie=planted)
    given = answer.getheader("set-cookie").partition(";")[0]
    assert given != planted
    assert said(strict.ask("GET", "/api/status", Cookie=planted)) == NOBODY
    again, _ = strict.try_sign_in("engineer", PASSWORDS["engineer"], Cookie=given)
    assert said(strict.ask("GET", "/api/status", Cookie=given)) == NOBODY, "signing in anew ends what was"
    assert strict.ask("GET", "/api/status", Cookie=again.getheader("set-cookie").partition(";")[0])[0].status == 200


@pytest.mark.parametrize(
    "cookie", ["=", ";;;", 'nearscan-{}="', "nearscan-{}=", "nearscan-{}=\xff\x00"[:-1], "x" * 8000]
)
def test_broken_cookies_are_nobodys(strict, cookie):
    assert said(strict.ask("GET", "/api/status", Cookie=cookie.format(strict.settings.console.port))) == NOBODY


def test_guessing_is_slowed_down_for_the_one_who_guesses(tmp_path, monkeypatch):
    monkeypatch.setattr(sign_in, "Waits", lambda: Waits(lambda: 0.0))  # no wait ends
    bench = Bench(tmp_path, kiosk=[])
    try:
        tries = [bench.try_sign_in("viewer", f"guess {n}", **SPOOFED[n % 4]) for n in range(30)]
        assert [answer.status for answer, _ in tries] == [401] * 6 + [429] * 24
        answer, body = tries[-1]
        assert json.loads(body) == {"error": "sign-in: too many wrong passwords; try again in 1 s", "wait_s": 1}
        assert answer.getheader("retry-after") == "1"
        assert bench.try_sign_in("viewer", PASSWORDS["viewer"])[0].status == 429, "nor is a right one looked at"
        right = json.dumps({"name": "viewer", "password": PASSWORDS["viewer"]})
        kind = {"Content-Type": "application/json"}
        assert bench.ask("POST", "/api/sign-in", right, source="127.0.0.2", **kind)[0].status == 200, "not for others"
    finally:
        bench.close()


def test_a_wrong_and_an_unknown_name_look_the_same(strict):
    answers = [strict.try_sign_in(name, "wrong password") for name in ("viewer", "nobody")]
    assert len({(answer.status, body, tuple(sorted(dict(answer.getheaders())))) for answer, body in answers}) == 1


def test_passwords_are_looked_at_one_by_one_beside_the_event_loop(strict, monkeypatch):
    going, go = threading.Semaphore(0), threading.Event()

    def slow(account, password):
        going.release()
        assert go.wait(PATIENCE_S)
        return False

    strict.sign_in("engineer")
    monkeypatch.setattr(sign_in, "verify", slow)
    body, kind = json.dumps({"name": "viewer", "password": "x"}), {"Content-Type": "application/json"}

    def attack(name, source):
        return strict.ask("POST", "/api/sign-in", body.replace("viewer", name), source=source, **kind)[0].status

    n_refused = 40 - sign_in._MOST_AT_ONCE
    with ThreadPoolExecutor(41) as pool:
        try:
            attacks = [pool.submit(attack, f"name{n}", f"127.0.1.{n}") for n in range(1, 41)]
            assert going.acquire(timeout=PATIENCE_S)
            end = time.monotonic() + PATIENCE_S
            while sum(one.done() for one in attacks) < n_refused and time.monotonic() < end:
                time.sleep(0.01)
            assert {one.result() for one in attacks if one.done()} == {503}
            assert strict.ask("GET", "/sign-in")[0].status == 200, "the page answers meanwhile"
            assert not going.acquire(blocking=False), "one at a time"
            assert attack("viewer", "127.0.0.1") == 503
            at_home = pool.submit(attack, "engineer", "127.0.0.1")
            assert not at_home.done()
        finally:
            go.set()
        assert sorted(one.result() for one in attacks) == [401] * sign_in._MOST_AT_ONCE + [503] * n_refused
        assert at_home.result() == 401, "who has signed in from there before is looked at all the same"


@pytest.mark.parametrize(
    "sent", [b"", b"GET /api/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-", b"POST /api/sign-in HTTP/1.1\r\n"]
)
def test_a_thousand_half_open_requests_keep_nobody_out(strict, sent):
    mine = strict.sign_in("viewer")
    with contextlib.ExitStack() as stack:
        half_open = []
        for _ in range(1000):
            one = stack.enter_context(socket.create_connection(strict.address.split(":"), PATIENCE_S, ("127.0.0.3", 0)))
            one.sendall(sent)
            half_open.append(one)
        for _ in range(5):
            assert strict.ask("GET", "/api/status", **mine.headers)[0].status == 200
        with live(strict, Cookie=mine.cookie) as socket_of_page:
            assert socket_of_page.ping().wait(PATIENCE_S)
        assert sum(is_hung_up(one) for one in half_open) >= 1000 - http_deadline.MOST_WAITING - 1


def is_hung_up(one):
    one.settimeout(0.0)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def raw(bench, request):
    """Send bytes; gives all that comes until the other side hangs up."""
    with socket.create_connection(bench.address.split(":"), timeout=PATIENCE_S) as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := one.recv(65536):
                answer += part
        return answer


def test_a_header_that_does_not_end_is_cut_off(strict):
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000
    assert raw(strict, head).startswith(b"HTTP/1.1 400 ")
    assert strict.ask("GET", "/sign-in")[0].status == 200


def post(bench, more, body=b""):
    head = f"POST /api/sign-in HTTP/1.1\r\nHost: {bench.address}\r\nConnection: close\r\n"
    return raw(bench, (head + more + "\r\n").encode() + body)


def test_bodies_are_bounded_before_they_are_taken(strict):
    assert post(strict, "Content-Length: 3000000\r\n").startswith(b"HTTP/1.1 413 ")
    assert post(strict, "Content-Length: 99999999999999999999\r\n")[:12] in (b"HTTP/1.1 411", b"HTTP/1.1 400")
    assert post(strict, "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n").startswith(b"HTTP/1.1 411 ")
    assert post(strict, "Content-Length: -1\r\n").startswith(b"HTTP/1.1 400 ")
    kind = "Content-Type: application/json\r\n"
    assert post(strict, f"{kind}Content-Length: 5000\r\n", b"{" * 5000).startswith(b"HTTP/1.1 400 ")
    two = "Content-Length: 5\r\nContent-Length: 6\r\n"
    assert post(strict, two, b"hello").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("n_bytes", [4097, 1 << 20, (1 << 63) - 1])
def test_a_huge_websocket_frame_ends_its_connection_before_it_is_taken(strict, n_bytes):
    mine = strict.sign_in("viewer")
    with live(strict, Cookie=mine.cookie) as viewer:
        head = struct.pack(">BBQ4s", 0x81, 0x80 | 127, n_bytes, b"\0\0\0\0")  # RFC 6455 section 5.2
        viewer.socket.sendall(head)
        with pytest.raises(ConnectionClosed) as closed:
            viewer.recv(PATIENCE_S)
        assert closed.value.rcvd.code == 1009
    assert strict.ask("GET", "/api/status", **mine.headers)[0].status == 200


def test_a_message_in_endless_pieces_ends_its_connection(strict):
    mine = strict.sign_in("viewer")
    with live(strict, Cookie=mine.cookie) as viewer, pytest.raises(ConnectionClosed):
        viewer.send("x" for _ in range(100_000))
    assert strict.ask("GET", "/api/status", **mine.headers)[0].status == 200
