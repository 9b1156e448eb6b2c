# SPDX-License-Identifier: Apache-2.0
"""What was measured comes back from disk; the oldest makes room; a damaged file is said to be one."""

import numpy as np
import pytest

from appliance.errors import StorageError
from appliance.faults import measurements
from appliance.faults.measurements import Recorder, measurement_files, read_measurements

RULES = ("lost", "spike")


def record(folder, values, setup="8 coils"):
    recorder = Recorder(folder, "mri-live")
    for value in values:
        recorder.add(setup, RULES, {"spike": value})
    recorder.close()


def test_frames_come_back_and_a_later_run_appends(tmp_path):
    record(tmp_path / "faults", [1.0, 2.0])
    record(tmp_path / "faults", [3.0])
    (path,) = measurement_files(tmp_path / "faults", "mri-live")
    found = read_measurements(path)
    assert (found.setup, found.rules) == ("8 coils", RULES)
    assert found.frames[:, 1].tolist() == [1, 2, 3]
    assert np.isnan(found.frames[:, 0]).all(), "a rule without a basis"


def test_setups_have_files_of_their_own_and_other_pipelines_are_not_listed(tmp_path):
    record(tmp_path, [1.0])
    record(tmp_path, [2.0], "4 coils")
    assert {read_measurements(path).setup for path in measurement_files(tmp_path, "mri-live")} == {"8 coils", "4 coils"}
    assert measurement_files(tmp_path, "mri") == []


def test_the_oldest_frames_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(measurements, "MOST_FRAMES", 10)
    record(tmp_path, np.arange(25.0))
    (path,) = measurement_files(tmp_path, "mri-live")
    assert sorted(read_measurements(path).frames[:, 1]) == list(range(15, 25))


@pytest.mark.parametrize("keep", [0, 100, 4090, 4100])
def test_a_file_cut_short_is_named_and_the_next_recording_begins_anew(tmp_path, keep):
    record(tmp_path, [1.0, 2.0])
    (path,) = measurement_files(tmp_path, "mri-live")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match="damaged; delete it, its frames are recorded anew"):
        read_measurements(path)
    record(tmp_path, [5.0])
    if keep < 4096:
        assert read_measurements(path).frames[:, 1].tolist() == [5]


def test_a_folder_that_cannot_be_written_holds_up_nobody(tmp_path, caplog):
    (tmp_path / "faults").write_text("a file where the folder should be")
    record(tmp_path / "faults", [1.0])
    assert "measurements of mri-live are not kept: " in caplog.text
