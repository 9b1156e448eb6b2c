# SPDX-License-Identifier: Apache-2.0
"""The whole appliance, from the wire of the scanner to the PACS: real processes, real sockets, real peers."""

import os
import re
import shutil
import signal
import subprocess
import threading
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from scipy.ndimage import gaussian_filter
from waiting import wait_for

from appliance.mri.phantom import cine_kspace
from appliance.simulate.display import Display
from appliance.simulate.mri import stream_cine, stream_file
from appliance.simulate.site import Site

ROOT = Path(__file__).resolve().parents[1]
MRD = ROOT.parent / "shared" / "data" / "mrd"
MODELS = ROOT / "models"

SITE = """\
site: {name: test, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: PACS_PORT, ae_title: ORTHANC}}
pipelines:
  mri-live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1}}
    stages:
      - reconstruct: {method: grappa}
      - denoise: {model: mr-denoise}
      - detect_anomalies
    sinks:
      - mrd_reply: {data_type: float32}
      - openigtlink: {port: $display, protocol: 3}
      - dicom_results: {to: [pacs]}
      - preview
buffer: {reserve_gb: 0, retry_min_s: 0.2, retry_max_s: 1}
console: {port: $console}
"""


@pytest.fixture
def make_site(tmp_path):
    """Start an appliance that delivers to a PACS at `port`; stop it at the end."""
    sites = []

    def make(port, yaml=SITE):
        yaml = yaml.replace("PACS_PORT", str(port))
        site = Site(tmp_path, yaml, ports=("mrd", "display", "console"))
        sites.append(site)
        site.start()
        return site

    yield make
    for site in sites:
        site.stop()


def cine(site, n_frames, rate_hz=20.0, **options):
    frames = (cine_kspace(n, (96, 96), 4) for n in range(n_frames))
    return stream_cine("127.0.0.1", site.ports["mrd"], frames, frame_rate_hz=rate_hz, **options)


def delivered(site):
    counts = site.counts()
    return counts["sent"] + counts["committed"]


def error(image, truth):
    """NRMSE, and the largest error that a reader could take for structure; the images may differ by a factor."""
    image = image * (np.vdot(image, truth) / np.vdot(image, image))
    difference = np.abs(image - truth)
    return np.linalg.norm(difference) / np.linalg.norm(truth), gaussian_filter(difference, 2).max() / truth.max()


def validate(data, folder):
    """Return what dciodvfy calls an error."""
    path = folder / "check.dcm"
    path.write_bytes(data)
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    return [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.peer
@pytest.mark.skipif(not MRD.exists(), reason=f"no real k-space at {MRD}")
def test_real_kspace_goes_in_and_the_image_comes_out_at_scanner_display_and_pacs(make_site, orthanc, tmp_path):
    site = make_site(orthanc.port)
    display = Display("127.0.0.1", site.ports["display"])
    full = stream_file(MRD / "brain8ch_semireal_full.h5", "127.0.0.1", site.ports["mrd"])
    undersampled = stream_file(MRD / "brain8ch_semireal_R2_acs24.h5", "127.0.0.1", site.ports["mrd"])
    for result in (full, undersampled):
        assert result.closed
        assert result.texts == []
        assert len(result.images) == 1
    wait_for(lambda: len(orthanc.get("/instances")) == 4, "both scans, reconstructed and denoised, at the PACS")
    wait_for(lambda: delivered(site) == 4, "the buffer to know it")
    display.close()

    files = orthanc.files()
    assert [problem for data in files for problem in validate(data, tmp_path)] == []
    stored = [pydicom.dcmread(BytesIO(data)) for data in files]
    reconstructed = [ds for ds in stored if ds.ImageType[0] == "ORIGINAL"]
    denoised = [ds for ds in stored if ds.ImageType[0] == "DERIVED"]
    assert len(reconstructed) == len(denoised) == 2
    assert {ds.SourceImageSequence[0].ReferencedSOPInstanceUID for ds in denoised} == {
        ds.SOPInstanceUID for ds in reconstructed
    }

    by_time = sorted(reconstructed, key=lambda ds: ds.AcquisitionDateTime)
    truth, image = (ds.pixel_array.astype(float) for ds in by_time)
    nrmse, structured = error(image, truth)
    print(f"reconstructed: NRMSE {nrmse:.4f}, structured error {structured:.4f}")
    assert nrmse <= 0.042  # zero-filling 0.117
    assert structured <= 0.020  # zero-filling 0.111

    answered, answered_full = undersampled.images[0].data[0, 0], full.images[0].data[0, 0]
    nrmse, structured = error(answered, answered_full)
    print(f"denoised:      NRMSE {nrmse:.4f}, structured error {structured:.4f}")
    assert nrmse <= 0.042
    assert structured <= 0.020
    at_pacs = max(denoised, key=lambda ds: ds.AcquisitionDateTime).pixel_array
    for integers in (at_pacs, display.shown.newest[0]):  # each with a scale of its own
        assert np.abs(answered * (integers.max() / answered.max()) - integers).max() <= 1  # the same, but for rounding


def test_a_cine_comes_back_whole_in_order_and_is_kept_while_the_pacs_is_away(make_site, tmp_path):
    from appliance.simulate.pacs import count, serve_pacs

    site = make_site(9)  # nobody listens on the discard port
    result = cine(site, 30)
    assert [image.head["image_index"] for image in result.images] == list(range(1, 31))
    assert result.closed
    wait_for(lambda: site.counts()["produced"] == 60, "reconstructed and denoised results")
    assert delivered(site) == 0
    wait_for(lambda: "pacs" in " ".join(site.status["deliverer"]["alarms"]), "an alarm that names the PACS")

    site.stop_process("appliance")
    pacs = serve_pacs(tmp_path / "pacs", 0, "ORTHANC")
    site.file.write_text(site.file.read_text().replace("port: 9,", f"port: {pacs.address[1]},"))
    site.start()
    wait_for(lambda: delivered(site) == 60, "everything to be delivered after the restart")
    assert count(tmp_path / "pacs") == 60
    pacs.close()


def test_a_killed_pipeline_is_back_for_the_next_scan_and_touches_nothing_else(make_site):
    site = make_site(9)
    others = {name: site.status[name]["pid"] for name in ("deliverer", "console")}
    first = site.status["pipeline-mri-live"]["pid"]

    broken = cine(site, 40, on_frame=lambda n: os.kill(first, signal.SIGKILL) if n == 10 else None)
    assert not broken.closed
    assert broken.error
    wait_for(
        lambda: (
            site.status["pipeline-mri-live"]["pid"] != first and site.status["pipeline-mri-live"]["state"] == "running"
        ),
        "the pipeline to be restarted",
    )
    result = cine(site, 5)
    assert result.closed
    assert len(result.images) == 5
    assert others == {name: site.status[name]["pid"] for name in others}


def test_stopping_in_the_middle_of_a_scan_keeps_every_frame_that_came(make_site):
    site = make_site(9)
    scanner = threading.Thread(target=cine, args=(site, 200), kwargs={"timeout_s": 10}, daemon=True)
    scanner.start()
    wait_for(lambda: site.counts()["produced"] > 20, "the scan to be under way")
    site.stop_process("appliance")
    log = site.log_file().read_text()
    n_frames = int(re.search(r"aborted, (\d+) frames: nearscan is stopping", log)[1])
    counts = site.counts()
    assert counts["jobs"] + counts["produced"] / 2 == n_frames
    assert "did not stop in time" not in log
    scanner.join(30)


def test_an_altered_model_never_stops_an_image_but_marks_it_and_raises_an_alarm(make_site, tmp_path):
    shutil.copytree(MODELS, tmp_path / "models")
    model = tmp_path / "models" / "mr-denoise.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 0xFF
    model.write_bytes(data)
    site = make_site(9, SITE + f"models: {{dir: {tmp_path / 'models'}}}\n")
    alarm = site.status["pipeline-mri-live"]["alarms"]["stage denoise"]
    assert "mr-denoise" in alarm
    result = cine(site, 5)
    assert len(result.images) == 5
    comments = [" ".join(image.meta["ImageComments"]) for image in result.images]
    assert all("denoise" in comment for comment in comments)
    wait_for(lambda: site.counts()["produced"] == 5, "the originals as results, and no denoised ones")
    wait_for(
        lambda: site.status["pipeline-mri-live"]["stages"]["denoise"]["passed_through"] == 5, "the status to count them"
    )


def test_faulty_frames_are_told_to_the_scanner_and_the_next_scan_is_served(make_site):
    site = make_site(9)
    reasons = {"nan-line": "NaN", "zeros": "zero", "skip-line": "did not come", "repeat-line": "more than once"}
    for fault, reason in reasons.items():
        result = cine(site, 6, faults={3: fault})
        assert len(result.images) == 6
        assert result.closed
        assert any(reason in text for text in result.texts), result.texts
        assert reason in " ".join(result.images[3].meta["ImageComments"])
    good = cine(site, 3)
    assert good.texts == []
    assert len(good.images) == 3
