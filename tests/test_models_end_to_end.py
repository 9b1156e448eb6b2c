# SPDX-License-Identifier: Apache-2.0
"""Models in a running appliance: activated between scans, damaged on disk while images flow; real processes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from appliance.inference.card import shipped_models
from appliance.mri.phantom import cine_kspace
from appliance.simulate.mri import stream_cine
from appliance.simulate.site import Site

SITE = """\
site: {name: test, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
models: {dir: MODELS}
pipelines:
  mri-live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages: [reconstruct, {denoise: {model: mr-denoise}}]
    sinks: [mrd_reply]
    deadline_ms: 0
buffer: {reserve_gb: 0}
"""


def models(folder, version):
    """The shipped denoiser as some version; no machine is too slow for it: timing decides no test."""
    shutil.copytree(shipped_models(), folder)
    card = folder / "mr-denoise.yaml"
    text = re.sub("(?m)^version: .*", f"version: '{version}'", card.read_text())
    card.write_text(re.sub("(?m)^deadline_ms: .*", "deadline_ms: 60000", text))
    return folder


@pytest.fixture
def site(tmp_path):
    folder = models(tmp_path / "models", "1")
    site = Site(tmp_path, SITE.replace("MODELS", str(folder)), ports=("mrd",))
    site.start()
    yield site
    site.stop()


def wait_for(condition, what, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def pipeline(site):
    return site.status["pipeline-mri-live"]


def scan(site, n_frames=3):
    """Give the reasons why images came back unprocessed; every one must come back."""
    frames = (cine_kspace(n, (96, 96), 4) for n in range(n_frames))
    result = stream_cine("127.0.0.1", site.ports["mrd"], frames, frame_rate_hz=20.0)
    assert len(result.images) == n_frames and result.closed
    comments = [" ".join(image.meta.get("ImageComments", [])) for image in result.images]
    return [comment for comment in comments if "denoise" in comment]


def version(site):
    """The version that a scan is run on."""
    assert scan(site) == []
    time.sleep(1.5)  # its status is published once a second
    return pipeline(site)["stages"]["denoise"]["version"]


def alarm(site):
    return pipeline(site)["alarms"].get("model mr-denoise", "")


def test_a_version_is_activated_and_its_file_damaged_while_the_appliance_runs(site, tmp_path):
    assert version(site) == "1"
    new = models(tmp_path / "new", "2")
    command = [sys.executable, "-m", "appliance", "models", "activate", "mr-denoise", "2", "--from", str(new)]
    subprocess.run([*command, "--config", str(site.file)], check=True, capture_output=True)
    log = site.log_file()
    wait_for(
        lambda: "mr-denoise: version 2 is taken up by the next scan" in log.read_text(), "the pipeline to prove it"
    )
    assert version(site) == "2" and alarm(site) == ""

    marked = []
    scanner = threading.Thread(target=lambda: marked.append(scan(site, 60)))
    scanner.start()
    onnx = site.data_dir / "models" / "mr-denoise" / "2" / "mr-denoise.onnx"
    onnx.write_bytes(onnx.read_bytes()[:20_000])
    wait_for(lambda: "what was loaded before stays in use" in alarm(site), "the alarm")
    scanner.join(60)
    assert marked == [[]]  # all 60 came, denoised by the copy that was proved

    before = pipeline(site)["pid"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pipeline(site)["pid"] != before and pipeline(site)["state"] == "running", "a new process")
    assert version(site) == "1"  # it has no proved copy of version 2, and the one before takes the same inputs
    assert re.match(r"runs degraded on openvino .*/2/mr-denoise.yaml: sha256 of mr-denoise.onnx is ", alarm(site))
