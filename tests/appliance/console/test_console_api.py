# SPDX-License-Identifier: Apache-2.0
"""The console's HTTP and WebSocket side, over real sockets."""

import contextlib
import http.client
import json
import os
import socket
import struct
import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from appliance import http_deadline
from appliance.console.guard import Gate
from appliance.console.serve import run
from appliance.errors import ConfigError
from appliance.settings import Console as ConsoleSettings
from appliance.settings import Settings

PATIENCE_S = 20
PIXELS = np.zeros((2, 3), np.uint8)


def get(bench, path, **headers):
    connection = http.client.HTTPConnection(bench.address, timeout=PATIENCE_S)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not (got := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return got


def live(bench, pipeline="mri-live", **kwargs):
    return connect(f"ws://{bench.address}/ws/live?pipeline={pipeline}", proxy=None, **kwargs)


def unpack(message):
    (length,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + length]), message[4 + length :]


def show_until_seen(bench, sequence, viewer):
    """The bus joins readers late: publish until the first preview is through."""
    while True:
        bench.show(sequence, PIXELS)
        try:
            return unpack(viewer.recv(0.1))
        except TimeoutError:
            continue


def test_status_merges_what_the_processes_and_the_buffer_say(bench, owed):
    def status():
        bench.tell("deliverer", alarms={"pacs": "does not answer"})
        bench.tell("pipeline-mri-live", frames={"in": 7})
        said = json.loads(get(bench, "/api/status")[1])
        return said if len(said["processes"]) == 2 else None

    said = until(status)
    assert (said["site"], said["pipelines"]) == ("mri-1", ["mri-live"])
    assert said["processes"]["pipeline-mri-live"]["frames"] == {"in": 7}
    assert said["processes"]["deliverer"]["alarms"] == {"pacs": "does not answer"}
    assert said["buffer"]["produced"] == 5
    expected = {"queued": 1, "sending": 0, "sent": 3, "verified": 0, "committed": 0, "held": 0, "quarantined": 1}
    assert said["buffer"]["destinations"]["pacs"] == expected


def test_status_without_a_buffer_makes_none(bench):
    assert json.loads(get(bench, "/api/status")[1])["buffer"] is None
    assert not list(bench.settings.site.data_dir.glob("*.sqlite"))


def test_health_follows_the_processes(bench, monkeypatch):
    assert get(bench, "/healthz")[0].status == 503  # nobody heard of yet

    def health(**status):
        bench.tell("daemon", **status)
        answer, body = get(bench, "/healthz")
        return answer.status, json.loads(body)["processes"].get("daemon")

    until(lambda: health() == (200, "running"))
    until(lambda: health(state="failed") == (503, "failed"))
    until(lambda: health() == (200, "running"))
    monkeypatch.setattr("appliance.console.newest.SILENT_S", 0.0)
    assert json.loads(get(bench, "/healthz")[1])["processes"]["daemon"] == "silent"


def test_metrics_can_be_scraped(bench, owed):
    status = {
        "pipeline": "mri-live",
        "frames": {"in": 7},
        "stages": {"denoise": {"lost": 2, "latency_ms": {"p99": 5.0}}},
        "alarms": {"a": "text"},
    }

    def text():
        bench.tell("pipeline-mri-live", **status)
        said = get(bench, "/metrics")[1].decode()
        return said if "mri-live" in said else None

    said = until(text)
    for line in (
        'nearscan_process_running{process="pipeline-mri-live"} 1.0',
        'nearscan_alarms{process="pipeline-mri-live"} 1.0',
        'nearscan_frames_in_total{pipeline="mri-live"} 7.0',
        'nearscan_operator_events_total{event="lost",kind="stage",operator="denoise",pipeline="mri-live"} 2.0',
        'nearscan_latency_seconds{kind="stage",operator="denoise",pipeline="mri-live",quantile="0.99"} 0.005',
        'nearscan_deliveries{destination="pacs",state="sent"} 3.0',
    ):
        assert line in said.splitlines()


@pytest.mark.parametrize("path", ["/", "/static/console.js", "/static/console.css", "/static/live.js"])
def test_the_page_comes_with_its_security_headers(bench, path):
    answer, body = get(bench, path)
    assert answer.status == 200
    assert b"SPDX-License-Identifier" in body
    policy = answer.getheader("content-security-policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.getheader("x-content-type-options") == "nosniff"
    assert answer.getheader("server") is None


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/../etc/passwd", "/nothing"])
def test_nothing_else_is_served(bench, path):
    answer, _ = get(bench, path, Cookie=bench.sign_in("engineer").cookie)
    assert answer.status == 404
    assert answer.getheader("x-frame-options") == "DENY"


def test_foreign_names_and_origins_are_refused(bench):
    answer, body = get(bench, "/api/status", Host="images.example")
    said = "console: this host name or origin is not ours; open the page by this machine's name or address"
    assert (answer.status, json.loads(body)) == (421, {"error": said})
    assert get(bench, "/api/status", Origin="http://evil.example")[0].status == 421
    with pytest.raises(InvalidStatus), live(bench, origin="http://evil.example"):
        pass
    with live(bench, origin=f"http://{bench.address}"):
        pass


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("[::1]:80", True),
        (socket.gethostname(), True),
        ("evil.example", False),
        ("", False),
        ("127.0.0.1.evil.example", False),
        ("[::1", False),
        ("[fe80::1", False),
    ],
)
def test_only_addresses_and_our_own_name_are_our_names(host, ours):
    assert Gate(ConsoleSettings()).is_our_name(host) is ours


def test_a_viewer_gets_newest_only_at_its_own_pace(bench):
    with live(bench) as viewer:
        header, pixels = show_until_seen(bench, 0, viewer)
        assert (header["sequence"], bytes(pixels)) == (0, PIXELS.tobytes())
        assert header["sent_ns"] >= header["received_ns"]
        for sequence in range(1, 60):
            bench.show(sequence, PIXELS)
            time.sleep(0.005)
        numbers = []
        with pytest.raises(TimeoutError):
            while True:  # nothing was acknowledged: at most two are on their way
                numbers.append(unpack(viewer.recv(0.5))[0]["sequence"])
        assert len(numbers) <= 1
        viewer.send('{"seen": true}')
        assert unpack(viewer.recv(PATIENCE_S))[0]["sequence"] > 50


@pytest.mark.parametrize("said", ["no JSON", "[]", '{"ping": {}}', "[" * 4000])
def test_a_viewer_that_says_garbage_is_hung_up_on(bench, said):
    with live(bench) as viewer:
        viewer.send(said)
        with pytest.raises(ConnectionClosed) as closed:
            viewer.recv(PATIENCE_S)
        assert closed.value.rcvd.code == 1007
    with live(bench) as other:
        other.send('{"ping": 5}')
        assert json.loads(other.recv(PATIENCE_S))["pong"] == 5


def test_a_stuck_viewer_does_not_hold_up_another(bench):
    big = np.zeros((1024, 1024), np.uint8)
    with (
        live(bench, max_size=None) as viewer,
        socket.create_connection(bench.address.split(":"), timeout=PATIENCE_S) as stuck,
    ):
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handshake = f"GET /ws/live?pipeline=mri-live HTTP/1.1\r\nHost: {bench.address}\r\nUpgrade: websocket\r\n"
        handshake += (
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        stuck.sendall(handshake.encode())
        assert stuck.recv(12) == b"HTTP/1.1 101"
        until(lambda: bench.process.status()["viewers"] == 2)
        show_until_seen(bench, 0, viewer)
        viewer.send('{"seen": true}')
        seen = 0
        while seen < 50:
            bench.show(seen + 1, big)
            try:
                seen = max(seen, unpack(viewer.recv(0.2))[0]["sequence"])
                viewer.send('{"seen": true}')
            except TimeoutError:
                continue
    until(lambda: bench.process.status()["viewers"] == 0)


def test_a_ping_tells_the_boxs_clock(bench):
    with live(bench) as viewer:
        before = time.monotonic_ns()
        viewer.send('{"ping": 12.5}')
        said = json.loads(viewer.recv(PATIENCE_S))
        assert said["pong"] == 12.5
        assert before <= said["now_ns"] <= time.monotonic_ns()


@pytest.mark.parametrize("said", ["[1]", "{", '{"ping": []}', "x" * 5000])
def test_nonsense_ends_the_viewer_alone(bench, said):
    with live(bench) as viewer, pytest.raises(ConnectionClosed):
        viewer.send(said)
        viewer.recv(PATIENCE_S)
    assert get(bench, "/api/status")[0].status == 200


def test_an_unknown_pipeline_is_refused(bench):
    with pytest.raises(InvalidStatus), live(bench, pipeline="../x"):
        pass


@pytest.mark.parametrize(
    ("first", "sent"),
    [(b"", b""), (b"", b"GET / HT"), (b"GET /static/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET / HT")],
)
def test_a_request_that_does_not_end_is_hung_up_on(bench, first, sent, monkeypatch):
    monkeypatch.setattr(http_deadline, "REQUEST_S", 0.3)
    with socket.create_connection(bench.address.split(":"), timeout=5) as slow:  # less than the keep-alive
        if first:
            slow.sendall(first)
            until(lambda: slow.recv(65536).endswith(b"}\n"))
        slow.sendall(sent)
        until(lambda: slow.recv(65536) == b"")


def test_small_answers_do_not_wait_for_acknowledgements(bench):
    """Nagle's algorithm is off on the console's end, also after the upgrade to a WebSocket."""

    def is_off_for(client):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as end:
                if end.getpeername() == client.getsockname() and end.getsockname() == client.getpeername():
                    return end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        raise AssertionError("the console's end was not found")

    connection = http.client.HTTPConnection(bench.address, timeout=PATIENCE_S)
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    assert is_off_for(connection.sock)
    connection.close()
    with live(bench) as viewer:
        assert is_off_for(viewer.socket)


def test_a_live_page_is_not_hung_up_on(bench, monkeypatch):
    monkeypatch.setattr(http_deadline, "REQUEST_S", 0.1)
    with live(bench) as viewer:
        time.sleep(0.4)
        show_until_seen(bench, 0, viewer)


def test_a_taken_port_says_so(bench):
    port = bench.settings.console.port
    with pytest.raises(
        ConfigError, match=f"console: cannot listen on 127.0.0.1:{port}: .*; choose another port or bind"
    ):
        run(bench.settings, bench.process)
    with pytest.raises(ConfigError, match="console: not in the configuration; add"):
        run(Settings.model_validate({"site": {"name": "x", "data_dir": bench.settings.site.data_dir}}), bench.process)
