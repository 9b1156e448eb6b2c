# SPDX-License-Identifier: Apache-2.0
"""A scanner's CT series through the running appliance to a PACS that commits, while its processes are killed."""

import os
import signal
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from waiting import wait_for

from appliance.buffer import Buffer
from appliance.dicom.part10 import split
from appliance.simulate.site import Site

SERIES = Path(__file__).resolve().parents[2] / "shared" / "data" / "series" / "ct_head_ge.tar.xz"

SITE = """\
site: {name: ct, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
listen:
  dicom: {port: OUR_PORT, bind: 127.0.0.1}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: PACS_PORT, ae_title: ORTHANC, commit: required}}
routes:
  ct: {when: {Modality: CT}, to: [pacs]}
series: {silence_s: 2} # the end of an association is lost with a killed receiver
buffer: {reserve_gb: 0, retry_min_s: 0.2, retry_max_s: 1}
"""

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not SERIES.exists(), reason=f"needs the scanner data in {SERIES}"),
]


def test_a_series_reaches_a_pacs_that_commits_whatever_is_killed(tmp_path, orthanc):
    with tarfile.open(SERIES) as archive:
        archive.extractall(tmp_path / "ct", filter="data")
    found = [path for path in sorted((tmp_path / "ct").rglob("*")) if path.is_file()]
    files = [path for path in found if path.read_bytes()[128:132] == b"DICM"]
    assert len(files) > 20
    site = Site(tmp_path, SITE.replace("OUR_PORT", str(orthanc.our_port)).replace("PACS_PORT", str(orthanc.port)))
    command = ["storescu", "-aec", "NEARSCAN", "127.0.0.1", str(orthanc.our_port)]

    def send(some):
        return subprocess.run(
            [*command, *map(str, some)], env={**os.environ, "TCP_NODELAY": "1"}, capture_output=True
        ).returncode

    try:
        site.start()
        assert send(files[:10]) == 0
        for name in ("receiver", "deliverer"):
            os.kill(site.status[name]["pid"], signal.SIGKILL)
        wait_for(lambda: send(files) == 0, "the receiver to be back")
        wait_for(lambda: site.counts()["committed"] == len(files), "everything to be committed")
        buffer = Buffer(site.data_dir)
        rows = "SELECT state, n_instances FROM series"
        wait_for(lambda: buffer.database.query(rows) == [("complete", len(files))], "the series to be complete")
        assert buffer.first_broken_audit_row() is None
        buffer.close()
    finally:
        site.stop()
    stored = {dcmread(BytesIO(file)).SOPInstanceUID: bytes(split(file).dataset) for file in orthanc.files()}
    sent = {parts.sop_instance_uid: bytes(parts.dataset) for parts in (split(path.read_bytes()) for path in files)}
    assert stored == sent
