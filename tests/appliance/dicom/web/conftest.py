# SPDX-License-Identifier: Apache-2.0
"""A DICOMweb service on a buffer of its own, and what asks it."""

import http.client
import json

import pytest

from appliance.buffer import Buffer
from appliance.dicom.admit import admit_next
from appliance.dicom.web.serve import WebServer
from appliance.settings import ListenDicomweb


class Web:
    def __init__(self, tmp_path, free_port, reserve_bytes=0, **settings):
        self.told = []
        self.buffer = Buffer(tmp_path / "data", reserve_bytes)
        listen = ListenDicomweb.model_validate({"port": free_port, "bind": "127.0.0.1", **settings})
        self.server = WebServer(listen, self.buffer, self.told.append, self.buffer.index)

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def stow(self, *files, path="/studies", content_type="application/dicom"):
        body = b"".join(
            b"--BOUND\r\nContent-Type: " + content_type.encode() + b"\r\n\r\n" + file + b"\r\n" for file in files
        )
        kind = 'multipart/related; type="application/dicom"; boundary=BOUND'
        answer, data = self.ask("POST", path, body + b"--BOUND--\r\n", Content_Type=kind)
        return answer.status, json.loads(data) if data[:1] == b"{" else data

    def find(self, path):
        admit_next(self.buffer, {}, lambda key, text: None, 1)
        answer, data = self.ask("GET", path)
        return json.loads(data) if answer.status == 200 else answer.status


@pytest.fixture
def web(tmp_path, free_port):
    made = []

    def make(**settings):
        made.append(Web(tmp_path, free_port, **settings))
        return made[-1]

    yield make
    for one in made:
        one.server.close()
        one.buffer.close()
