# SPDX-License-Identifier: Apache-2.0
"""A console that serves, with a bus that the test writes to."""

import http.client
import json
import ssl
import threading
import time
from functools import cache

from appliance.bus import Publisher
from appliance.console import accounts
from appliance.console.serve import run
from appliance.settings import Settings
from appliance.simulate.free_ports import free_ports

PATIENCE_S = 20
PASSWORDS = {role: f"correct horse of the {role}" for role in ("viewer", "technologist", "engineer")}


@cache
def hashed(password):
    """A real hash takes its time: one for each password and run is enough."""
    return accounts._hash("nobody", password)


class Process:
    """What the console sees of its child process."""

    def __init__(self):
        self.stopping = threading.Event()
        self.serving = threading.Event()
        self.status = dict
        self.alarms = {}

    def alarm(self, key, text):
        self.alarms[key] = text

    def serve(self, status):
        self.status = status
        self.serving.set()


class Signed:
    """A browser that has signed in: `cookie` as "name=token", `headers` for requests of all kinds."""

    def __init__(self, answer, said):
        self.cookie = answer.getheader("set-cookie").partition(";")[0]
        self.csrf = said["csrf"]
        self.headers = {"Cookie": self.cookie, "X-CSRF-Token": self.csrf}


class Bench:
    """A running console at `address`, and the bus. Everybody on this machine is a kiosk; there is an account for each
    role, with the role's name."""

    def __init__(self, data_dir, **console):
        (port,) = free_ports(1)
        pipeline = {"source": {"name": "mrd", "settings": None}, "sinks": [{"name": "preview", "settings": None}]}
        self.settings = Settings.model_validate(
            {
                "site": {"name": "mri-1", "data_dir": data_dir},
                "pipelines": {"mri-live": pipeline},
                "destinations": {"pacs": {"dicom": {"host": "192.0.2.10", "port": 104, "ae_title": "PACS"}}},
                "console": {"port": port, "kiosk": ["127.0.0.1"], **console},
            }
        )
        self.accounts = accounts.Accounts(accounts.accounts_file(self.settings))
        made = {role: {"role": role, "password": hashed(password)} for role, password in PASSWORDS.items()}
        self.accounts.file.touch(0o600)
        self.accounts.file.write_text(json.dumps(made))
        self.address = f"127.0.0.1:{port}"
        self.process = Process()
        run_dir = self.settings.site.sockets
        self.previews = Publisher(run_dir, "pipeline-mri-live", "preview")
        self.statuses = {
            name: Publisher(run_dir, name, "status") for name in ("pipeline-mri-live", "daemon", "deliverer", "console")
        }
        self._thread = threading.Thread(target=run, args=(self.settings, self.process))
        self._thread.start()
        assert self.process.serving.wait(20)

    def close(self):
        self.process.stopping.set()
        self._thread.join(20)
        assert not self._thread.is_alive()
        for publisher in (self.previews, *self.statuses.values()):
            publisher.close()

    def connection(self, source="127.0.0.1"):
        """A connection from that address of this machine."""
        common = {"timeout": PATIENCE_S, "source_address": (source, 0)}
        if self.settings.console.tls is None:
            return http.client.HTTPConnection(self.address, **common)
        return http.client.HTTPSConnection(self.address, context=self.trust(), **common)

    def trust(self):
        """What a browser knows of the console's certificate."""
        context = ssl.create_default_context(cafile=self.settings.console.tls.certificate)
        context.check_hostname = False
        return context

    def ask(self, method, path, body=None, source="127.0.0.1", **headers):
        """One request; gives the answer and its body."""
        connection = self.connection(source)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def try_sign_in(self, name, password, **headers):
        body = json.dumps({"name": name, "password": password})
        return self.ask("POST", "/api/sign-in", body, **{"Content-Type": "application/json", **headers})

    def sign_in(self, role):
        """Sign in with that role."""
        answer, body = self.try_sign_in(role, PASSWORDS[role])
        assert answer.status == 200, body
        return Signed(answer, json.loads(body))

    def tell(self, process, **status):
        self.statuses[process].publish({"process": process, "state": "running", "alarms": {}, **status})

    def show(self, sequence, pixels, **header):
        height, width = pixels.shape[-2:]
        now_ns, utc_ns = time.monotonic_ns(), time.time_ns()
        seen = {"first_ns": utc_ns, "last_ns": utc_ns, "sequence": sequence, "count": 1, "scan_id": "s1"}
        self.previews.publish(
            {
                "pipeline": "mri-live",
                "state": "live",
                "scan_id": "s1",
                "sequence": sequence,
                "width": width,
                "height": height,
                "pixel_mm": [1.0, 1.0],
                "original": pixels.ndim == 3,
                "acquired_ns": utc_ns,
                "received_ns": now_ns,
                "age_ms": 3.2,
                "window": [0, 1],
                "findings": [],
                "recent_findings": [{**found, **seen} for found in header.get("findings", [])],
                "marks": [],
                "provenance": ["reconstruct", "denoise"],
                **header,
            },
            pixels,
        )
