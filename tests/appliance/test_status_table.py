# SPDX-License-Identifier: Apache-2.0
"""`nearscan status`: what is heard, and what people read."""

import threading
import time

from appliance import config
from appliance.bus import Publisher
from appliance.status_table import collect, table


def test_the_newest_status_of_each_process_is_collected(tmp_path):
    text = f"site: {{name: t, data_dir: {tmp_path}, run_dir: {tmp_path}}}\nconsole: {{}}\n"
    settings = config.parse(text.encode(), "f")
    over = threading.Event()

    def speak():
        publisher = Publisher(tmp_path, "console", "status")
        while not over.wait(0.02):
            publisher.publish({"process": "console", "state": "running", "time_ns": time.time_ns()})
        publisher.close()

    thread = threading.Thread(target=speak)
    thread.start()
    try:
        statuses = collect(settings, wait_s=1.0)
    finally:
        over.set()
        thread.join()
    assert list(statuses) == ["console"], "the daemon is silent"
    assert statuses["console"]["state"] == "running"


def test_the_table():
    now = time.time_ns()
    statuses = {
        "daemon": {
            "state": "running",
            "time_ns": now,
            "alarms": {"receiver": "ended by signal 9"},
            "children": {"pipeline-x": {"state": "running"}, "receiver": {"state": "waiting"}},
        },
        "pipeline-x": {"state": "running", "time_ns": now, "frames": {"in": 42}, "alarms": {}},
        "deliverer": {"state": "running", "time_ns": now, "results": {"produced": 84, "queued": 3}},
    }
    assert table(statuses).splitlines() == [
        "process     state    age    frames in  alarms",
        "daemon      running  0.0 s  -          1",
        "pipeline-x  running  0.0 s  42         0",
        "deliverer   running  0.0 s  -          0",
        "receiver    waiting  -      -          -",
        "",
        "results: produced 84, queued 3",
        "",
        "ALARM daemon receiver: ended by signal 9",
    ]
