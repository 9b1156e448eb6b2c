# SPDX-License-Identifier: Apache-2.0
"""nearscan commission, from frames that the stage itself measured to the thresholds of its next scan."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.context import Context
from appliance.faults.measurements import Recorder
from appliance.frames import Frame, Scan
from appliance.mri.phantom import cine_kspace
from appliance.simulate.mri import cine_encoding
from operators.stages import detect_anomalies

MATRIX = (64, 64)
KY = np.arange(0, 64, 2)


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(
        f"site: {{name: box, data_dir: {tmp_path}/data}}\n"
        "pipelines: {mri-live: {source: {mrd: {port: 9002}}, stages: [detect_anomalies], sinks: [preview]}}\n"
    )
    return path


@pytest.fixture
def nearscan(site):
    def run(*words, code=0):
        done = CliRunner().invoke(main, ["commission", *words, "--config", str(site)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def new_stage(folder, recorder, monkeypatch):
    monkeypatch.setattr(detect_anomalies, "recorder", lambda *_: recorder)
    settings = detect_anomalies.Settings()
    stage = detect_anomalies.make(settings, Context("mri-live", folder / "data", folder))
    stage.begin(
        Scan("s", "MR", ("coil", "ky", "kx"), (4, None, 64), "complex64", 0, encoding=cine_encoding((4, *MATRIX), 2))
    )
    return stage


def scan(stage, n_frames, damage=lambda kspace: kspace):
    for sequence in range(n_frames):
        kspace = damage(cine_kspace(sequence, MATRIX, 4)[:, ::2].copy())
        frame = Frame(
            scan_id="s", sequence=sequence, array=kspace, axes=("coil", "ky", "kx"), affine=np.eye(4),
            acquired_ns=0, received_ns=0, attachments={"ky": KY},
        )  # fmt: skip
        yield stage.frame(frame).findings


def recorded(folder, monkeypatch, n_frames, damage=lambda kspace: kspace):
    recorder = Recorder(folder / "data" / "faults", "mri-live")
    findings = list(scan(new_stage(folder, recorder, monkeypatch), n_frames, damage))
    recorder.close()
    return findings


def test_from_clean_frames_to_the_thresholds_of_the_next_scan(tmp_path, monkeypatch, nearscan):
    assert set(recorded(tmp_path, monkeypatch, 600)) == {()}
    text = nearscan("mri-live")
    assert "4 coils, acceleration 2, 600 frames:" in text
    assert text.endswith("In force from the next scan on.\n")
    rules = json.loads((tmp_path / "data" / "faults" / "mri-live.json").read_text())["setups"][
        "4 coils, acceleration 2"
    ]["rules"]
    assert {"spike", "zipper", "motion", "odd_even", "displacement", "low_snr"} <= rules.keys()

    def weak(kspace):  # between the threshold of commissioning and the default
        return kspace * np.exp(1j * 0.12 * (np.arange(32) % 2))[:, None].astype(np.complex64)

    recorder = Recorder(tmp_path / "data" / "faults", "mri-live")
    stage = new_stage(tmp_path, recorder, monkeypatch)
    assert stage.status()["commissioned"] == "for 4 coils, acceleration 2, from 600 frames"
    assert set(scan(stage, 20)) == {()}, "clean frames stay silent"
    kinds = [{f.kind for f in found} for found in scan(stage, 5, weak)]
    recorder.close()
    assert all("odd_even" in kind for kind in kinds)
    assert 0.12 / 2 < 0.1, "which the default would not find"


@pytest.mark.parametrize("modality", ["CT", "US"])
def test_ct_and_ultrasound_are_commissioned_in_the_same_way(tmp_path, monkeypatch, nearscan, modality):
    recorder, rng = Recorder(tmp_path / "data" / "faults", "mri-live"), np.random.default_rng(0)
    monkeypatch.setattr(detect_anomalies, "recorder", lambda *_: recorder)
    stage = detect_anomalies.make(detect_anomalies.Settings(), Context("mri-live", tmp_path / "data", tmp_path))
    stage.begin(Scan("s", modality, ("y", "x"), (None, None), "float32", 0))
    for sequence in range(20):
        frame = Frame(
            scan_id="s", sequence=sequence, array=rng.integers(0, 99, (256, 256), np.uint8), axes=("y", "x"),
            affine=np.eye(4), acquired_ns=sequence, received_ns=0,
        )  # fmt: skip
        assert stage.frame(frame).findings == ()
    setup, measured = {"CT": "CT images", "US": "ultrasound images"}[modality], stage.status()["measured"]
    for _ in range(500):  # the rest like the last one, to save time
        recorder.add(setup, tuple(measured), {rule: value * rng.uniform(0.9, 1) for rule, value in measured.items()})
    recorder.close()
    text, rules = nearscan("mri-live"), detect_anomalies.DETECTORS[modality].RULES
    assert f"{setup}, 520 frames:" in text
    assert "default thresholds stay for" not in text, "rules of other modalities are not missed"
    learnt = json.loads((tmp_path / "data" / "faults" / "mri-live.json").read_text())["setups"][setup]["rules"]
    assert learnt.keys() == rules.keys()
    assert all(learnt[name]["threshold"] >= rule.least for name, rule in rules.items())


def test_what_is_wrong_is_said(tmp_path, monkeypatch, nearscan):
    assert "commission: no pipeline 'mri' in " in nearscan("mri", code=1)
    assert "no frames in " in nearscan("mri-live", code=1)
    recorded(tmp_path, monkeypatch, 30)
    assert "30 clean frames, 500 are needed; scan on, then try again" in nearscan("mri-live", code=1)
    assert not (tmp_path / "data" / "faults" / "mri-live.json").exists()
    assert "1 recordings deleted" in nearscan("mri-live", "--forget")
    assert "no frames in " in nearscan("mri-live", code=1)


def test_faulty_frames_are_not_learnt_unless_somebody_says_so(tmp_path, monkeypatch, nearscan):
    def spiky(kspace):
        kspace[1, 3, 5] += 3
        return kspace

    recorded(tmp_path, monkeypatch, 520, spiky)
    assert "520 of 520 frames exceed a default threshold" in nearscan("mri-live", code=1)
    assert "less sensitive than by default" in nearscan("mri-live", "--all-clean")


def test_a_damaged_file_is_replaced_with_a_word(tmp_path, monkeypatch, nearscan):
    recorded(tmp_path, monkeypatch, 520)
    path = tmp_path / "data" / "faults" / "mri-live.json"
    path.write_text("{")
    assert "what it held is given up" in nearscan("mri-live")
    assert json.loads(path.read_text())["pipeline"] == "mri-live"
