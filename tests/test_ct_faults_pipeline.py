# SPDX-License-Identifier: Apache-2.0
"""A received CT series with a ring, through the whole appliance: the alarm is in the pipeline's status."""

import numpy as np
from received import ct
from waiting import wait_for

from appliance.dicom.association import Association
from appliance.dicom.part10 import split
from appliance.settings import DicomDestination
from appliance.simulate.site import Site
from training import ct_faults
from training.low_dose_ct import hu_phantom
from training.parallel_beam import beam_for

SITE = """\
site: {name: ct, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
listen:
  dicom: {port: $dicom, bind: 127.0.0.1}
pipelines:
  ct-watch:
    source: {dicom: {select: {Modality: CT}}}
    stages: [detect_anomalies]
    sinks: [preview]
buffer: {reserve_gb: 0}
"""
N_CLEAN, N_FAULTY = 3, 4


def series():
    """Part 10 files: clean slices, then slices with one ring, in stored values of 1 HU."""
    rng = np.random.default_rng([77, 3])
    scanned = ct_faults.scan(rng, hu_phantom(rng, 256), beam_for(256, 480), 0.75, 8.0)
    ringed = ct_faults.plant(np.random.default_rng(3), "rings", scanned).image
    for number in range(N_CLEAN + N_FAULTY):
        stored = np.rint(ringed if number >= N_CLEAN else scanned.image).clip(-1024, 3071) + 1024
        yield ct(
            number, Rows=256, Columns=256, RescaleSlope=1, PixelData=stored.astype("<u2").tobytes(),
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
        )  # fmt: skip


def test_a_ring_that_persists_is_an_alarm_of_the_pipeline(tmp_path):
    site = Site(tmp_path, SITE, ports=("dicom",))
    parts = [split(data) for data in series()]
    scanner = DicomDestination(host="127.0.0.1", port=site.ports["dicom"], ae_title="NEARSCAN", calling_ae_title="CT1")
    contexts = sorted({(one.sop_class_uid, one.transfer_syntax_uid) for one in parts})

    def pipeline():
        return site.status.get("pipeline-ct-watch", {})

    try:
        site.start()
        with Association("receiver", scanner, contexts) as assoc:
            for one in parts:
                assoc.store(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, one.dataset)
        wait_for(lambda: pipeline().get("source", {}).get("scans") == 1, "the scan to be done")
        wait_for(lambda: "acquisition" in pipeline().get("alarms", {}), "the alarm")
        stage = pipeline()["stages"]["detect_anomalies"]
        assert (stage["frames"], stage["passed_through"]) == (N_CLEAN + N_FAULTY, 0)
        assert stage["findings"] == {"rings": N_FAULTY}
        text = pipeline()["alarms"]["acquisition"]
        assert text.startswith("ring of ")
        assert text.endswith(f"calibrate the detector with an air scan (since frame {N_CLEAN})")
    finally:
        site.stop()
