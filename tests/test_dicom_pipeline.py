# SPDX-License-Identifier: Apache-2.0
"""A received MR series through a pipeline to a real PACS; the pipeline is killed in its middle, and nothing doubles."""

import os
import signal
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from waiting import wait_for

from appliance.dicom.association import Association
from appliance.dicom.part10 import split
from appliance.settings import DicomDestination
from appliance.simulate.site import Site

SERIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "series" / "mr_t1_siemens_HFS.tar.xz"

SITE = """\
site: {name: mr, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
listen:
  dicom: {port: OUR_PORT, bind: 127.0.0.1}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: PACS_PORT, ae_title: ORTHANC}}
pipelines:
  mr:
    source: {dicom: {select: {Modality: MR}}}
    sinks:
      - dicom_results: {to: [pacs]}
buffer: {reserve_gb: 0, retry_min_s: 0.2, retry_max_s: 1}
"""

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not SERIES.exists(), reason=f"needs the scanner data in {SERIES}"),
]


def test_each_image_has_one_result_although_the_pipeline_is_killed(tmp_path, orthanc, free_port):
    with tarfile.open(SERIES) as archive:
        archive.extractall(tmp_path / "mr", filter="data")
    files = sorted((tmp_path / "mr").rglob("*.dcm"))
    site = Site(tmp_path, SITE.replace("OUR_PORT", str(free_port)).replace("PACS_PORT", str(orthanc.port)))
    parts = [split(path.read_bytes()) for path in files]
    scanner = DicomDestination(host="127.0.0.1", port=free_port, ae_title="NEARSCAN", calling_ae_title="MR1")
    contexts = sorted({(one.sop_class_uid, one.transfer_syntax_uid) for one in parts})

    def send(assoc, some):
        for one in some:
            assoc.store(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, one.dataset)

    def pipeline():
        return site.status.get("pipeline-mr", {})

    try:
        site.start()
        with Association("receiver", scanner, contexts) as assoc:  # while it is open, so is the series
            send(assoc, parts[:15])
            wait_for(lambda: pipeline().get("sinks", {}).get("dicom_results", {}).get("spooled"), "a first result")
            os.kill(pipeline()["pid"], signal.SIGKILL)
            send(assoc, parts[15:])
        wait_for(lambda: pipeline().get("source", {}).get("scans") == 1, "the scan to be done")
        assert pipeline()["source"]["last_reason"]
        wait_for(lambda: site.counts().get("sent", 0) + site.counts().get("committed", 0) == len(files), "the results")
        counts = site.counts()
        assert (counts["received"], counts["produced"], counts["conflicts"]) == (len(files), len(files), 0)
    finally:
        site.stop()
    results = [dcmread(BytesIO(file)) for file in orthanc.files()]
    assert len({ds.SeriesInstanceUID for ds in results}) == 1
    assert sorted(ds.InstanceNumber for ds in results) == list(range(1, len(files) + 1))
    _same_images(results, files)


def _same_images(results, files):
    """Each result shows the image that lies where it says, to the rounding of the stored values."""
    sources = {tuple(np.round([float(v) for v in ds.ImagePositionPatient], 2)): ds for ds in map(dcmread, files)}
    for ds in results:
        source = sources.pop(tuple(np.round([float(v) for v in ds.ImagePositionPatient], 2)))
        shown = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        correlation = np.corrcoef(shown.ravel(), source.pixel_array.ravel())[0, 1]
        assert correlation > 0.9999, "scaled, quantised and clipped, but the same image"
    assert not sources
