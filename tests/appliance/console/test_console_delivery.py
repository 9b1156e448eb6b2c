# SPDX-License-Identifier: Apache-2.0
"""Delivery, alarms, machine and configuration over HTTP; and that every route is documented."""

import json
import re
import time
from pathlib import Path

import pytest
from day import busy_day
from starlette.routing import Mount, WebSocketRoute

from appliance.buffer import Buffer, NewInstance, outbox_desk
from appliance.buffer.acknowledgements import acknowledged
from appliance.console.app import Console
from appliance.latency import FIRST_MS, N_BINS, Latency

PATIENCE_S = 20
CONSOLE_MD = Path(__file__).parents[3] / "docs" / "console.md"


def get(bench, signed, path, status=200):
    answer, body = bench.ask("GET", path, **signed.headers)
    assert answer.status == status, body
    return json.loads(body)


def post(bench, signed, path, value, status=200):
    answer, body = bench.ask("POST", path, json.dumps(value), **signed.headers)
    assert answer.status == status, body
    return json.loads(body)


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (got := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return got


def test_every_route_is_documented_with_the_role_that_it_takes(bench):
    text = CONSOLE_MD.read_text()
    for route in Console(bench.settings, lambda key, text: None).app().routes:
        if isinstance(route, Mount):
            assert f"`GET {route.path}/…`" in text
            continue
        method = "WS" if isinstance(route, WebSocketRoute) else next(iter(route.methods - {"HEAD"}))
        path = re.sub(r"\{(\w+)(:int)?\}", lambda word: word[1].upper(), route.path)
        assert f"| `{method} {path}` |" in text, path


def test_the_documented_roles_are_those_that_are_asked_for(bench):
    roles = ("viewer", "technologist", "engineer")
    rows = re.findall(r"^\| `(GET|POST) (/api/[^`]*)` \| ([a-z, ]+) \|", CONSOLE_MD.read_text(), re.M)
    assert len(rows) > 12
    signed = {role: bench.sign_in(role) for role in roles}
    for method, path, role in rows:
        if role == "everybody" or path == "/api/sign-out":
            continue
        real = path.replace("KIND", "series").replace("ID", "1").replace("ACTION", "retry")
        needed = roles.index(role.partition(",")[0])
        for i, name in enumerate(roles):
            answer, body = bench.ask(method, real, "{}" if method == "POST" else None, **signed[name].headers)
            assert (answer.status == 403) == (i < needed), (path, name, body)


@pytest.fixture
def day(bench):
    day = busy_day(bench.settings.site.data_dir)
    yield day
    day.close()


def test_what_waits_is_told_by_what_needs_a_person_priority_and_age(bench, day):
    signed = bench.sign_in("viewer")
    said = get(bench, signed, "/api/delivery")
    (pacs,) = said["destinations"]
    assert (pacs["name"], pacs["address"], pacs["state"]) == ("pacs", "PACS at 192.0.2.10:104", "unknown")
    assert {state: own["count"] for state, own in pacs["waiting"].items()} == {"quarantined": 1, "queued": 8}
    assert pacs["waiting"]["queued"]["oldest_s"] == pytest.approx(300 - 5, abs=20)
    first = said["deliveries"][0]
    assert (first["state"], first["last_error"][:21]) == ("quarantined", "C-STORE: the pacs ref")
    assert first["who"]["PatientID"] == "<img src=x onerror=alert(1)>"
    bench.tell("deliverer", destinations={"pacs": {"state": "waiting", "failures": 3, "last_error": "gone"}})

    def circuit():
        bench.tell("deliverer", destinations={"pacs": {"state": "waiting", "failures": 3, "last_error": "gone"}})
        (pacs,) = get(bench, signed, "/api/delivery")["destinations"]
        return pacs["state"] == "waiting" and (pacs["failures"], pacs["last_error"]) == (3, "gone")

    until(circuit)


def test_what_is_owed_to_a_destination_that_is_gone_is_listed(bench, day):
    new = NewInstance(b"x", "1.2", "1.2.3", "1.2", destinations=("old-archive",))
    day.buffer.put_instance(new, day.now - 60)
    pacs, old = get(bench, bench.sign_in("viewer"), "/api/delivery")["destinations"]
    assert (pacs["name"], old["name"], old["address"]) == ("pacs", "old-archive", "not in the configuration")
    assert old["waiting"]["queued"]["count"] == 1


def test_retry_hold_and_release_of_one_and_of_all(bench, day):
    signed = bench.sign_in("technologist")
    (stuck,) = [one for one in get(bench, signed, "/api/delivery")["deliveries"] if one["state"] == "quarantined"]
    assert post(bench, signed, "/api/delivery/retry", {"ids": [stuck["id"]]}) == {"changed": 1, "left": 0}
    wanted = {"destination": "pacs", "state": "queued"}
    assert post(bench, signed, "/api/delivery/hold", wanted) == {"changed": 9, "left": 0}
    states = {one["state"] for one in get(bench, signed, "/api/delivery")["deliveries"]}
    assert states == {"held"}, "an answer after a change shows it"
    assert post(bench, signed, "/api/delivery/hold", {"ids": [stuck["id"]]}) == {"changed": 0, "left": 1}
    assert post(bench, signed, "/api/delivery/release", {"ids": [stuck["id"]]}) == {"changed": 1, "left": 0}
    rows = day.buffer.database.query("SELECT event, count(*), max(detail) FROM audit GROUP BY event HAVING event IN"
                                     " ('retry', 'hold', 'release')")  # fmt: skip
    assert rows == [
        ("hold", 9, "pacs: queued -> held by technologist"),
        ("release", 1, "pacs: held -> queued by technologist"),
        ("retry", 1, "pacs: quarantined -> queued by technologist"),
    ]
    assert day.buffer.first_broken_audit_row() is None


NO_SENSE = (
    ("/api/delivery/delete", {"ids": [1]}, 404, "no such action; there are retry, hold, release"),
    ("/api/delivery/hold", {}, 400, "say which: ids, or destination and state"),
    ("/api/delivery/hold", {"destination": "pacs"}, 400, "say which"),
    ("/api/delivery/hold", {"destination": "pacs", "state": "sending"}, 400, "state: "),
    ("/api/delivery/hold", {"ids": ["1"]}, 400, "ids.0: "),
    ("/api/delivery/hold", {"ids": list(range(501))}, 400, "ids: "),
    ("/api/alarms/acknowledge", {"process": "daemon"}, 400, "key: Field required"),
)


def test_what_makes_no_sense_changes_nothing(bench, day):
    signed = bench.sign_in("technologist")
    for path, value, status, words in NO_SENSE:
        assert words in post(bench, signed, path, value, status)["error"]
    assert day.buffer.database.query("SELECT count(*) FROM deliveries WHERE state = 'held'") == [(0,)]


def test_many_are_changed_in_pieces_and_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(outbox_desk, "_AT_ONCE", 4)
    buffer = Buffer(tmp_path)
    for n in range(10):
        buffer.put_instance(NewInstance(b"%d" % n, "1.2", f"1.2.{n}", "1.2", destinations=("pacs",)), n)
    buffer.outbox.claim("pacs", 20, 3)
    assert outbox_desk.change(buffer.database, "hold", outbox_desk.Selection(), "x", 21) == (7, 3)
    assert buffer.database.query("SELECT count(*) FROM audit WHERE event = 'hold'") == [(7,)]
    assert outbox_desk.change(buffer.database, "release", outbox_desk.Selection(state="held"), "x", 22) == (7, 0)
    buffer.close()


def alarm(bench, signed, name="pacs"):
    found = [one for one in get(bench, signed, "/api/status")["alarms"] if one["key"] == name]
    return found[0] if found else None


def test_an_acknowledged_alarm_is_quiet_until_it_says_something_else_or_comes_back(bench):
    signed = bench.sign_in("technologist")

    def tells(text, wanted):
        def look():
            bench.tell("deliverer", alarms={"pacs": text} if text else {})
            said = alarm(bench, signed)
            return (
                said is None if wanted is None else bool(said) and (said["text"], bool(said["acknowledged"])) == wanted
            )

        until(look)

    tells("away", ("away", False))
    seen = {"process": "deliverer", "key": "pacs", "text": "away"}
    assert post(bench, signed, "/api/alarms/acknowledge", seen)["person"] == "technologist"
    tells("away", ("away", True))
    assert "it is over or says something else" in post(
        bench, signed, "/api/alarms/acknowledge", {**seen, "text": "near"}, 409
    )["error"]  # fmt: skip
    tells("far away", ("far away", False))
    tells("away", ("away", False))
    post(bench, signed, "/api/alarms/acknowledge", seen)
    buffer = Buffer(bench.settings.site.data_dir)
    assert [one.person for one in acknowledged(buffer.database)] == ["technologist"]
    tells("", None)
    until(lambda: acknowledged(buffer.database) == [])
    tells("away", ("away", False))
    ((detail, n),) = buffer.database.query("SELECT detail, count(*) FROM audit WHERE event = 'alarm acknowledged'")
    assert (detail, n) == ("away by technologist", 2)
    buffer.close()


def test_a_silent_process_is_an_alarm(bench, monkeypatch):
    signed = bench.sign_in("viewer")

    def heard():
        bench.tell("daemon")
        return "daemon" in get(bench, signed, "/api/status")["processes"]

    until(heard)
    assert alarm(bench, signed, "silent") is None
    monkeypatch.setattr("appliance.console.newest.SILENT_S", 0.0)
    assert alarm(bench, signed, "silent")["process"] == "daemon"


def test_the_machine_says_how_busy_it_is(bench):
    signed = bench.sign_in("viewer")
    said = get(bench, signed, "/api/machine")
    assert 0 < said["memory"]["available_gb"] <= said["memory"]["total_gb"]
    assert 0 < said["disk"]["free_gb"] <= said["disk"]["total_gb"]
    assert said["n_cpus"] >= 1 and len(said["load"]) == 3


CONFIG = "site: {name: box}\ndestinations:\n  a: {dicomweb: {url: 'https://me:s3cret@a.example/x'}}\n"


def test_the_configuration_is_shown_without_passwords_and_a_copy_is_checked(bench):
    signed = bench.sign_in("engineer")
    assert "cannot be read" in get(bench, signed, "/api/config", 404)["error"]
    bench.settings.site.accepted_file.write_text(CONFIG)
    text = get(bench, signed, "/api/config")["text"]
    assert text == CONFIG.replace("s3cret", "***")
    said = post(bench, signed, "/api/config/check", {"text": text.replace("name:", "nam:")})
    assert said["ok"] is False
    assert "copy:1:8: site.nam: unknown key 'nam'; did you mean 'name'?" in said["problems"]
    data_dir = bench.settings.site.data_dir
    right = f"site: {{name: box, data_dir: {data_dir}}}\nbuffer: {{reserve_gb: 0}}\n"
    assert post(bench, signed, "/api/config/check", {"text": right}) == {"ok": True, "problems": [], "machine": []}
    said = post(bench, signed, "/api/config/check", {"text": right.replace("reserve_gb: 0", "reserve_gb: 10000")})
    assert "nothing is taken in" in said["machine"][0]
    assert post(bench, signed, "/api/config/check", {"text": "x" * 200_001}, 400)["error"].startswith("text: ")
    assert bench.settings.site.accepted_file.read_text() == CONFIG


def test_a_histogram_has_every_sample_in_the_bin_that_it_belongs_to():
    latency = Latency()
    assert latency.histogram() == []
    for ms in (0.01, FIRST_MS, 0.126, 1.0, 1.01, 490.0, 512.0, 513.0, 1e6):
        latency.add_ns(round(ms * 1e6))
    counts = latency.histogram()
    assert (len(counts), sum(counts)) == (N_BINS + 2, 9)
    edges = [FIRST_MS * 2 ** (i / 2) for i in range(N_BINS + 1)]
    assert edges[-1] == pytest.approx(512)
    assert (counts[0], counts[1], counts[6], counts[7]) == (2, 1, 1, 1)
    assert (counts[N_BINS], counts[N_BINS + 1]) == (2, 2)
