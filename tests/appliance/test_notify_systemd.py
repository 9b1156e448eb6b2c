# SPDX-License-Identifier: Apache-2.0
"""sd_notify over a real socket."""

import socket

import pytest

from appliance.notify_systemd import notify


@pytest.mark.parametrize("address", ["/notify", "@nearscan-test-notify"])
def test_it_arrives(address, tmp_path, monkeypatch):
    path = f"{tmp_path}{address}" if address.startswith("/") else f"{address}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + path[1:] if path.startswith("@") else path)
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert systemd.recv(100) == b"READY=1"


def test_a_systemd_that_does_not_read_stops_nothing(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        for _ in range(5000):
            notify("WATCHDOG=1")


def test_without_systemd_nothing_happens(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
