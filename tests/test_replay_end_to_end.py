# SPDX-License-Identifier: Apache-2.0
"""A whole appliance that records a scan, and gets it again from `nearscan replay`'s own function."""

from waiting import wait_for

from appliance.mri.phantom import cine_kspace
from appliance.recording import Recording
from appliance.simulate.mri import stream_cine
from appliance.simulate.replay import replay_mrd
from appliance.simulate.site import Site

SITE = """\
site: {name: test, data_dir: $data_dir, run_dir: $run_dir, device: cpu}
pipelines:
  mri-live:
    source: {mrd: {port: $mrd, bind: 127.0.0.1, record: {max_gb: 1}}}
    stages: [{reconstruct: {method: grappa}}]
    sinks: [{mrd_reply: {data_type: float32}}]
buffer: {reserve_gb: 0}
"""


def test_a_replay_gives_the_images_of_the_live_scan_bit_by_bit(tmp_path):
    site = Site(tmp_path, SITE, ports=("mrd",))
    try:
        site.start()
        frames = (cine_kspace(n, (64, 64), 4) for n in range(8))
        live = stream_cine("127.0.0.1", site.ports["mrd"], frames, frame_rate_hz=0, n_frames=8)
        assert (live.closed, live.error, live.texts, len(live.images)) == (True, "", [], 8)

        def is_recorded():
            said = site.status["pipeline-mri-live"]["source"]["recording"]
            return said["bytes"] > 0 and said["running"] == 0

        wait_for(is_recorded, "the end of the recording")
        (path,) = site.data_dir.glob("recordings/mri-live/*")
        again = []
        with Recording(path) as recording:
            result = replay_mrd(recording, "127.0.0.1", site.ports["mrd"], 2.0, again.append)
        assert (result.closed, result.error, result.cut, result.texts, result.n_images) == (True, "", "", [], 8)
        assert [image.data.tobytes() for image in again] == [image.data.tobytes() for image in live.images]
        assert len({image.data.tobytes() for image in again}) == 8
    finally:
        site.stop()
