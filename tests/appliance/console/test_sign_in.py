# SPDX-License-Identifier: Apache-2.0
"""Signing in and out, and what each role may, over real sockets."""

import json
import re
import time

import pytest
from console_bench import PASSWORDS, PATIENCE_S, Bench
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from appliance.buffer import Buffer
from appliance.buffer.audit import first_broken_row


@pytest.fixture
def strict(tmp_path):
    """A console without kiosks."""
    bench = Bench(tmp_path, kiosk=[])
    yield bench
    bench.close()


def me(bench, **headers):
    return json.loads(bench.ask("GET", "/api/me", **headers)[1])


def live(bench, **headers):
    return connect(f"ws://{bench.address}/ws/live?pipeline=mri-live", proxy=None, additional_headers=headers)


def audited(bench):
    buffer = Buffer(bench.settings.site.data_dir)
    try:
        assert first_broken_row(buffer.database) is None
        return buffer.database.query("SELECT event, subject, detail FROM audit ORDER BY id")
    finally:
        buffer.close()


def test_nobody_sees_anything_before_signing_in(strict):
    answer, _ = strict.ask("GET", "/", Accept="text/html,*/*")
    assert (answer.status, answer.getheader("location")) == (303, "/sign-in")
    for path in ("/", "/api/status", "/nothing"):
        answer, body = strict.ask("GET", path)
        assert (answer.status, json.loads(body)) == (
            401,
            {"error": "console: nobody is signed in; sign in first"},
        )
    assert strict.ask("GET", "/sign-in")[0].status == 200
    assert me(strict) == {"name": "", "role": "", "csrf": "", "ends_in_s": None}
    with pytest.raises(InvalidStatus), live(strict):
        pass


def test_signing_in_and_out_is_audited_and_the_cookie_is_strict(strict):
    answer, body = strict.try_sign_in(" Technologist ", PASSWORDS["technologist"])
    said = json.loads(body)
    assert (answer.status, said["name"], said["role"]) == (200, "technologist", "technologist")
    assert 0 < said["ends_in_s"] <= 12 * 3600
    port = strict.settings.console.port
    assert re.fullmatch(
        rf"nearscan-{port}=[\w-]{{43}}; HttpOnly; Path=/; SameSite=strict", answer.getheader("set-cookie")
    )
    cookie = answer.getheader("set-cookie").partition(";")[0]
    assert me(strict, Cookie=cookie) == said | {"ends_in_s": me(strict, Cookie=cookie)["ends_in_s"]}
    assert strict.ask("GET", "/api/status", Cookie=cookie)[0].status == 200

    out, _ = strict.ask("POST", "/api/sign-out", "", Cookie=cookie, **{"X-CSRF-Token": said["csrf"]})
    assert out.status == 200
    assert "Max-Age=0" in out.getheader("set-cookie")
    assert strict.ask("GET", "/api/status", Cookie=cookie)[0].status == 401
    assert audited(strict) == [
        ("sign-in", "technologist", "as technologist from 127.0.0.1"),
        ("sign-out", "technologist", "from 127.0.0.1"),
    ]


def test_no_log_line_has_a_session_in_it(strict, caplog):
    caplog.set_level("INFO")  # as in the appliance
    signed = strict.sign_in("viewer")
    with live(strict, Cookie=signed.cookie) as page:
        page.ping().wait(PATIENCE_S)
    strict.ask("POST", "/api/sign-out", "", **signed.headers)
    assert "sign-out: viewer from 127.0.0.1" in caplog.text
    for secret in (signed.cookie.partition("=")[2], signed.csrf, PASSWORDS["viewer"]):
        assert secret not in caplog.text


def test_a_failed_sign_in_is_audited_without_what_was_typed(strict, caplog):
    caplog.set_level("INFO")
    typed = ("viewer", "secret typed wrong"), ("SecretInTheNameField", "x"), ("viewer", ""), ("", "")
    answers = [strict.try_sign_in(*one) for one in typed]
    error = "sign-in: name or password is wrong; try again, or ask an engineer for a new password"
    assert [(answer.status, json.loads(body)) for answer, body in answers] == [(401, {"error": error})] * 4
    rows = audited(strict)
    assert [row[:2] for row in rows] == [("failed sign-in", who) for who in ("viewer", "", "viewer", "")]
    strict.sign_in("viewer")
    for text in (repr(rows), caplog.text):
        assert "ecret" not in text
        assert PASSWORDS["viewer"] not in text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '{"name": "viewer"}',
        '{"name": 1, "password": 2}',
        '{"name": "viewer", "password": "%s"}' % ("x" * 129),
        '{"name": "viewer", "password": %s' % ("[" * 3000),
        '{"name": "viewer", "password": "x", "more": 1}',
    ],
)
def test_nonsense_is_no_sign_in(strict, body):
    answer, said = strict.ask("POST", "/api/sign-in", body, **{"Content-Type": "application/json"})
    text = 'sign-in: {"name": text, "password": text} is expected; sign in on this box\'s own page'
    assert (answer.status, json.loads(said)) == (400, {"error": text})


def test_a_form_of_another_page_is_no_sign_in(strict):
    body = json.dumps({"name": "viewer", "password": PASSWORDS["viewer"]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer, said = strict.ask("POST", "/api/sign-in", body, **{"Content-Type": kind})
        assert answer.status == 400
        assert json.loads(said)["error"].startswith("sign-in: content-type application/json is expected")


def change_password(bench):
    bench.accounts.set_password("viewer", "quite another password")


def remove(bench):
    bench.accounts.remove("viewer")


def change_role(bench):
    bench.accounts.set_role("viewer", "engineer")


@pytest.mark.parametrize("change", [change_password, remove, change_role])
def test_a_changed_account_ends_its_sessions_and_their_websockets(strict, change):
    viewer, other = strict.sign_in("viewer"), strict.sign_in("engineer")
    with live(strict, Cookie=viewer.cookie) as socket, live(strict, Cookie=other.cookie) as others:
        change(strict)
        with pytest.raises(ConnectionClosed) as ended:
            socket.recv(PATIENCE_S)
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1008, "signed out")
        assert strict.ask("GET", "/api/status", **viewer.headers)[0].status == 401
        assert strict.ask("GET", "/api/status", **other.headers)[0].status == 200
        others.ping().wait(PATIENCE_S)
    assert strict.try_sign_in("viewer", PASSWORDS["viewer"])[0].status == (200 if change is change_role else 401)


def test_signing_out_closes_the_websockets_of_this_browser_alone(strict):
    first, second = strict.sign_in("viewer"), strict.sign_in("viewer")
    with live(strict, Cookie=first.cookie) as socket, live(strict, Cookie=second.cookie) as other:
        assert strict.ask("POST", "/api/sign-out", "", **first.headers)[0].status == 200
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE_S)
        other.ping().wait(PATIENCE_S)


def test_a_session_ends_after_its_longest_time_and_so_do_its_websockets(tmp_path):
    bench = Bench(tmp_path, kiosk=[], session_h=3 / 3600)
    try:
        signed = bench.sign_in("viewer")
        with live(bench, Cookie=signed.cookie) as socket, pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE_S)
        assert bench.ask("GET", "/api/status", **signed.headers)[0].status == 401
    finally:
        bench.close()


def test_a_page_that_nobody_touches_becomes_a_kiosk_until_the_next_sign_in(tmp_path):
    bench = Bench(tmp_path, kiosk=[], idle_minutes=1 / 60)
    try:
        signed = bench.sign_in("engineer")
        with live(bench, Cookie=signed.cookie) as socket:
            time.sleep(1.1)
            for _ in range(2):  # its own requests do not wake it
                assert me(bench, **signed.headers) == {"name": "", "role": "viewer", "csrf": "", "ends_in_s": None}
            assert bench.ask("GET", "/api/status", **signed.headers)[0].status == 200, "the live image stays"
            socket.ping().wait(PATIENCE_S)
            answer, body = bench.ask("GET", "/api/anything", **signed.headers)
            text = "console: this is not shown without a name; sign in first"
            assert (answer.status, json.loads(body)) == (403, {"error": text})
            answer, body = bench.ask("POST", "/api/anything", "", **signed.headers)
            assert (answer.status, json.loads(body)) == (403, {"error": text})
        again = bench.sign_in("engineer")
        assert me(bench, **again.headers)["name"] == "engineer"
    finally:
        bench.close()


def test_who_may_not_is_told_so(bench):
    """The kiosk is a viewer; unknown paths show what the guard says before any route."""
    answer, body = bench.ask("GET", "/api/secret")
    assert (answer.status, "without a name" in body.decode()) == (403, True)
    assert me(bench) == {"name": "", "role": "viewer", "csrf": "", "ends_in_s": None}
    assert bench.ask("GET", "/api/status")[0].status == 200
    assert bench.ask("POST", "/api/sign-out", "")[0].status == 401, "a kiosk changes nothing"
    assert me(bench, **bench.sign_in("engineer").headers)["role"] == "engineer", "and a person may sign in there"
