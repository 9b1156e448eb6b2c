# SPDX-License-Identifier: Apache-2.0
"""CT slices and an ultrasound clip, received by DICOM, denoised in a running appliance, with what was removed."""

import re
import shutil
import socket
import threading

import numpy as np
import pytest
from pydicom.uid import UltrasoundMultiFrameImageStorage
from received import ct
from waiting import wait_for

from appliance.dicom.association import Association
from appliance.dicom.part10 import split
from appliance.igtl import Connection, Image
from appliance.inference.card import shipped_models
from appliance.settings import DicomDestination
from appliance.simulate.site import Site
from training.low_dose_ct import scan_low_dose
from training.parallel_beam import beam_for
from training.validate_us import needle_display

SITE = """\
site: {name: room, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
listen:
  dicom: {port: $dicom, bind: 127.0.0.1}
models: {dir: MODELS}
pipelines:
  watch:
    source: {dicom: {select: {Modality: [CT, US]}}}
    stages:
      - denoise: {model: NAME}
    sinks:
      - openigtlink: {port: $display, protocol: 3, device_name: seen, removed_name: removed, image_type: float32}
      - preview
    deadline_ms: 0
buffer: {reserve_gb: 0}
series: {silence_s: 1}
"""


class Screen:
    """A display that keeps the images it gets, by sequence number: not every one when it is behind, but the last."""

    def __init__(self, port):
        self.seen, self.removed, self.metadata = {}, {}, {}
        self._newest, self._connection = 0, Connection(wanted=("IMAGE",))
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        self._socket.settimeout(None)
        while data := self._socket.recv(1 << 20):
            for message in self._connection.receive(data):
                if isinstance(getattr(message, "content", None), Image):  # the rest is skipped
                    self._note(message)

    def _note(self, message):
        if message.device_name == "removed":  # comes right after its image
            self.removed[self._newest] = message.content.array[0]
            return
        self._newest = int(message.metadata["sequence"])
        self.metadata[self._newest], self.seen[self._newest] = dict(message.metadata), message.content.array[0]

    def close(self):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()


@pytest.fixture
def watch(tmp_path):
    """Start a site with a model and give what a display shows of these files, and the pipeline's status."""
    sites = []

    def run(model, files, last, changed=True):
        folder = shutil.copytree(shipped_models(), tmp_path / "models")
        card = folder / f"{model}.yaml"  # no machine is too slow for it: timing decides no test
        card.write_text(re.sub("(?m)^deadline_ms: .*", "deadline_ms: 60000", card.read_text()))
        yaml = SITE.replace("NAME", model).replace("MODELS", str(folder))
        site = Site(tmp_path, yaml, ports=("dicom", "display"))
        sites.append(site)
        site.start()
        screen = Screen(site.ports["display"])
        send(site.ports["dicom"], [split(data) for data in files])
        wait_for(lambda: status(site).get("source", {}).get("scans") == 1, "the scan to be done")
        wait_for(lambda: last in (screen.removed if changed else screen.seen), "the last image")
        screen.close()
        return screen, status(site)

    yield run
    for site in sites:
        site.stop()


def status(site):
    return site.status.get("pipeline-watch", {})


def send(port, parts):
    scanner = DicomDestination(host="127.0.0.1", port=port, ae_title="NEARSCAN", calling_ae_title="SCANNER")
    contexts = sorted({(one.sop_class_uid, one.transfer_syntax_uid) for one in parts})
    with Association("receiver", scanner, contexts) as assoc:
        for one in parts:
            assoc.store(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, one.dataset)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


def test_ct_slices_in_hounsfield_units(watch):
    y, x = np.mgrid[:128, :128] - 63.5
    truth = np.where(np.hypot(y, x) < 50, np.float32(40), np.float32(-1000))
    truth[np.hypot(y - 10, x + 20) < 9] = 110
    scans = scan_low_dose(np.random.default_rng(2), truth, beam_for(128, 240, 1.2), 2.0, 25.0, n_scans=2)
    stored = [np.rint(truth + scan.noise).clip(-1024, 3071) for scan in scans]
    files = [
        ct(
            number, Rows=128, Columns=128, RescaleSlope=1, RescaleIntercept=-1024,
            PixelData=(hu + 1024).astype("<u2").tobytes(),
        ) for number, hu in enumerate(stored)
    ]  # fmt: skip
    screen, found = watch("ct-denoise", files, last=1)
    stage = found["stages"]["denoise"]
    assert (stage["frames"], stage["passed_through"], stage["model"]) == (2, 0, "ct-denoise")
    assert stage["noise_level"] == pytest.approx(25, rel=0.35)
    for number, removed in screen.removed.items():
        seen, hu = screen.seen[number], stored[number]
        np.testing.assert_allclose(seen + removed, hu, atol=1e-3)  # nothing is lost: float32 rounding
        body = truth > 0
        assert rms((seen - truth)[body]) < 0.7 * rms((hu - truth)[body])
        assert seen[0, 0] == pytest.approx(-1000, abs=24) and seen[:8].min() < -1000
        assert "ct-denoise" in str(screen.metadata[number])


def test_an_ultrasound_clip_of_grey_bytes(watch):
    scenes = [needle_display(20, seed) for seed in range(3)]
    clip = ct(
        1, sop_class=UltrasoundMultiFrameImageStorage, Modality="US", NumberOfFrames=3, Rows=256, Columns=256,
        BitsAllocated=8, BitsStored=8, HighBit=7, RescaleSlope=1, RescaleIntercept=0,
        PixelData=np.stack([scene.shown for scene in scenes]).astype(np.uint8).tobytes(),
    )  # fmt: skip
    screen, found = watch("us-despeckle", [clip], last=2)
    stage = found["stages"]["denoise"]
    assert (stage["frames"], stage["passed_through"], stage["model"]) == (3, 0, "us-despeckle")
    for number, removed in screen.removed.items():
        seen, scene = screen.seen[number], scenes[number]
        np.testing.assert_allclose(seen + removed, scene.shown, atol=1e-3)
        assert seen.min() >= 0 and seen.max() <= 255
        assert rms(seen - scene.truth) < 0.5 * rms(scene.shown - scene.truth)


def test_a_model_for_mr_leaves_ct_as_it_came_and_says_so(watch):
    pixels = np.random.default_rng(1).integers(1000, 1100, (64, 64)).astype("<u2")
    files = [ct(n, Rows=64, Columns=64, RescaleSlope=1, PixelData=pixels.tobytes()) for n in range(2)]
    screen, found = watch("mr-denoise", files, last=1, changed=False)
    assert found["stages"]["denoise"]["passed_through"] == 2
    assert "mr-denoise is for MR, got CT; name another" in str(found["alarms"])
    assert not screen.removed
    for number, seen in screen.seen.items():
        np.testing.assert_array_equal(seen, pixels.astype(np.float32) - 1024)
        assert "mr-denoise is for MR, got CT" in str(screen.metadata[number])
