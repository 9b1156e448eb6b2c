# SPDX-License-Identifier: Apache-2.0
"""The deliverer against real PACS programs: Orthanc that goes away and comes back, DCMTK's storescp."""

import threading
import time
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from appliance.buffer import Buffer
from appliance.dicom.deliver import Deliverer
from appliance.dicom.spool import pack
from appliance.settings import Settings

pytestmark = pytest.mark.peer

DEADLINE_S = 60  # far beyond what it takes; only a failure reaches it


class Running:
    """A deliverer in a thread of the test."""

    def __init__(self, data_dir, port, ae_title):
        pacs = {"dicom": {"host": "127.0.0.1", "port": port, "ae_title": ae_title, "timeout_s": 5}}
        waits = {"reserve_gb": 0, "retry_min_s": 0.1, "retry_max_s": 0.5}
        site = {"name": "box", "data_dir": data_dir}
        self.alarms, self.stop = {}, threading.Event()
        settings = Settings.model_validate({"site": site, "destinations": {"pacs": pacs}, "buffer": waits})
        self.deliverer = Deliverer(settings, self.alarms.__setitem__)
        self.thread = threading.Thread(target=self.deliverer.run, args=(self.stop,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()
        self.deliverer.close()

    def until(self, condition):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, (self.deliverer.status(), self.alarms)
            time.sleep(0.02)

    def until_sent(self, n):
        self.until(lambda: self.deliverer.status()["results"]["sent"] == n)


def stored_pixels(files):
    """Pixels by (series description, instance number)."""
    pixels = {}
    for file in files:
        ds = dcmread(BytesIO(file))
        key = (str(ds.SeriesDescription), int(ds.InstanceNumber))
        assert key not in pixels, "one instance twice"
        pixels[key] = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns)
    return pixels


def expected_pixels(spooled):
    return {
        (f"cine_sax {kind} (research)", one.frame.sequence + 1): np.rint(image * np.float32(one.scale)).astype("<u2")
        for one in spooled
        for kind, image in one.images.items()
    }


def assert_same(got, wanted):
    assert got.keys() == wanted.keys()
    for key, pixels in wanted.items():
        np.testing.assert_array_equal(got[key], pixels)


def test_orthanc_away_then_back_and_a_restart_between_lose_nothing(orthanc, tmp_path, make_spooled):
    spooled = [make_spooled(n) for n in range(12)]
    intake = Buffer(tmp_path)
    with Running(tmp_path, orthanc.port, orthanc.ae_title) as running:
        intake.put_jobs([pack(one, 5) for one in spooled[:4]], time.time())
        running.until_sent(8)
        orthanc.stop()
        intake.put_jobs([pack(one, 5) for one in spooled[4:8]], time.time())
        running.until(lambda: "cannot connect" in running.alarms.get("destination pacs", ""))
        running.until(lambda: running.deliverer.status()["results"]["produced"] == 16)
        assert running.deliverer.status()["destinations"]["pacs"]["state"] == "waiting"
    intake.put_jobs([pack(one, 5) for one in spooled[8:]], time.time())
    orthanc.start()
    with Running(tmp_path, orthanc.port, orthanc.ae_title) as running:
        running.until_sent(24)
        results = running.deliverer.status()["results"]
        assert (results["produced"], results["delivered"], results["quarantined"]) == (24, 24, 0)
        assert not any(running.alarms.values())
    assert_same(stored_pixels(orthanc.files()), expected_pixels(spooled))
    assert len(orthanc.get("/series")) == 2
    assert len(orthanc.get("/studies")) == 1
    intake.close()


def test_orthanc_that_does_not_know_its_name_is_reported_and_nothing_is_given_up(orthanc, tmp_path, make_spooled):
    intake = Buffer(tmp_path)
    intake.put_jobs([pack(make_spooled(), 5)], time.time())
    intake.close()
    with Running(tmp_path, orthanc.port, "SOMEONE") as running:
        running.until(lambda: "called AE title not recognised" in running.alarms.get("destination pacs", ""))
        assert running.deliverer.status()["results"]["queued"] == 2
    with Running(tmp_path, orthanc.port, orthanc.ae_title) as running:
        running.until_sent(2)


def test_storescp_gets_the_bytes_as_they_were_kept(tmp_path, make_spooled, free_port, start_dcmtk):
    folder = tmp_path / "storescp"
    folder.mkdir()
    start_dcmtk(free_port, "storescp", "+B", "-od", folder, "-aet", "STORESCP", free_port)
    spooled = [make_spooled(n) for n in range(10)]
    buffer = Buffer(tmp_path / "data")
    buffer.put_jobs([pack(one, 5) for one in spooled], time.time())
    buffer.close()
    with Running(tmp_path / "data", free_port, "STORESCP") as running:
        running.until_sent(20)
    assert_same(stored_pixels([path.read_bytes() for path in folder.iterdir()]), expected_pixels(spooled))
