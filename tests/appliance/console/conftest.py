# SPDX-License-Identifier: Apache-2.0
"""A console that serves, with a bus that the test writes to."""

import socket
import threading
import time

import pytest

from appliance.buffer import Buffer, NewInstance
from appliance.bus import Publisher
from appliance.console.serve import run
from appliance.settings import Settings


class Process:
    """What the console sees of its child process."""

    def __init__(self):
        self.stopping = threading.Event()
        self.serving = threading.Event()
        self.status = dict

    def serve(self, status):
        self.status = status
        self.serving.set()


class Bench:
    """A running console at `address`, and the bus."""

    def __init__(self, data_dir):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pipeline = {"source": {"name": "mrd", "settings": None}, "sinks": [{"name": "preview", "settings": None}]}
        self.settings = Settings.model_validate(
            {
                "site": {"name": "mri-1", "data_dir": data_dir},
                "pipelines": {"mri-live": pipeline},
                "console": {"port": port},
            }
        )
        self.address = f"127.0.0.1:{port}"
        self.process = Process()
        run_dir = self.settings.site.sockets
        self.previews = Publisher(run_dir, "pipeline-mri-live", "preview")
        self.statuses = {
            name: Publisher(run_dir, name, "status") for name in ("pipeline-mri-live", "daemon", "deliverer")
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


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture
def owed(bench):
    """A buffer in which the pacs got three of five results, and one went into quarantine."""
    buffer = Buffer(bench.settings.site.data_dir)
    for i in range(5):
        buffer.put_instance(NewInstance(b"%d" % i, "1.2", f"1.2.{i}", "1.2", destinations=("pacs",)), i)
    claimed = buffer.outbox.claim("pacs", 10, 4)
    buffer.outbox.mark_sent(claimed[:3], 10)
    buffer.outbox.quarantine(claimed[3], "refused", 10)
    buffer.close()
