# SPDX-License-Identifier: Apache-2.0
"""Rolling histograms over time, through restarts, kills and a disk that does not write."""

import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.buffer.database import Database
from appliance.buffer.drift_counts import WINDOW_H, DriftCounts
from appliance.console.metrics import write_metrics
from appliance.context import Context
from appliance.frames import Frame, Scan
from appliance.inference import drift_watch
from appliance.inference.drift import QUANTITIES, Reference, reference
from appliance.inference.drift_watch import FEWEST_FRAMES, Drift, open_drift
from appliance.inference.open_model import open_model
from appliance.status_table import table
from operators.stages.denoise import Settings
from operators.stages.denoise import make as make_stage

HOUR = 3600.0


def frames(n, brightness=1.0, seed=1):
    """Yield n (image, result, level) of flat tissue with noise."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        truth = np.linspace(0.2, brightness, 64 * 64).reshape(64, 64)
        level = float(rng.uniform(0.02, 0.1))
        noise = rng.normal(0, level, (64, 64))
        yield np.float32(truth + noise), np.float32(truth), level


KNOWN = Reference.model_validate(reference(*zip(*frames(200), strict=True)))


class Clock:
    now = 480_000 * HOUR

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def made(tmp_path, clock):
    """Make a Drift whose `keep` the test calls; closed at the end."""
    opened = []

    def make(known=KNOWN, name="mr-denoise", bins="b", pipeline="mri-live"):
        opened.append(Drift(name, known, DriftCounts(tmp_path, pipeline, name, bins), clock))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def see(drift, n, **how):
    for image, result, level in frames(n, **how):
        drift.observe(image, result, level, 1.0)


def rows(tmp_path):
    conn = sqlite3.connect(tmp_path / "nearscan.sqlite")
    found = conn.execute("SELECT pipeline, model, bins, hour, n_frames FROM drift ORDER BY hour").fetchall()
    conn.close()
    return found


def test_what_was_seen_is_counted_once(made):
    drift = made()
    triples = list(frames(3))
    for image, result, level in triples:
        drift.observe(image * 7, result * 7, level * 7, 7.0)
    n_frames, counts = drift.window()
    assert n_frames == 3
    values = np.concatenate([image.ravel() for image, _, _ in triples])
    edges = [-np.inf, *KNOWN.input.edges, np.inf]
    # scaled up and down again: a value may round over an edge
    assert np.abs(counts["input"] - np.histogram(values, edges)[0]).sum() <= 4
    assert {name: int(own.sum()) for name, own in counts.items()} == dict.fromkeys(QUANTITIES, 3 * 64 * 64)


def test_an_hour_leaves_the_window_after_a_day(made, clock):
    drift = made()
    for hour in range(30):
        clock.now = Clock.now + hour * HOUR
        see(drift, 2)
        assert drift.window()[0] == 2 * min(hour + 1, WINDOW_H)
    assert len(drift._hours) <= WINDOW_H, "nor does memory grow"
    clock.now += 1000 * HOUR
    assert drift.window()[0] == 0
    clock.now = Clock.now  # a clock that was wrong and is set back: what seems to come is not counted
    assert drift.window()[0] == 0


def test_like_and_unlike_and_too_few_and_no_reference(made, caplog):
    drift = made()
    see(drift, FEWEST_FRAMES - 1)
    assert drift.status()["trend"] == "too few frames yet (49 of 50)"
    assert drift.status()["distance"] == {}
    see(drift, 1)
    assert drift.status()["trend"] == "like its card"
    assert drift.status()["unlike_card"] == []

    see(drift, 500, brightness=4.0)
    with caplog.at_level(logging.WARNING):
        drift.keep()
        drift.keep()
    status = drift.status()
    assert status["unlike_card"] == ["input", "output"]
    far = status["distance"]["input"]
    assert status["trend"].startswith(f"unlike its card: image over its scale {far:.2f} (limit 0.")
    assert "result over its scale" in status["trend"]
    assert caplog.messages == [f"model mr-denoise in the last 24 h: {status['trend']}"], "said once"

    drift = made(known=None, name="other")
    see(drift, 60)
    assert drift.status()["trend"] == "no reference"
    assert drift.status()["frames"] == 60
    assert sum(drift.status()["counts"]["input"]) == 60 * 64 * 64


def test_a_day_is_kept_through_a_restart(made, clock, tmp_path):
    first = made()
    for hour in range(40):
        clock.now = Clock.now + hour * HOUR
        see(first, 2)
        first.keep()
    assert len(rows(tmp_path)) == WINDOW_H, "one row an hour, a day of them"
    second = made()
    see(second, 5)  # before it has read
    second.keep()
    expected, got = first.window(), second.window()
    assert got[0] == expected[0] + 5
    for name in QUANTITIES:
        assert got[1][name].sum() == expected[1][name].sum() + 5 * 64 * 64
    third = made()
    third.keep()
    assert third.window()[0] == got[0], "reading again adds nothing"


def test_rows_of_others_stay_their_own_and_old_ones_go_whoever_kept_them(made, clock, tmp_path):
    one, other = made(), made(bins="of another model file")
    elsewhere = made(pipeline="mri-second")
    for drift in (one, other, elsewhere):
        see(drift, 2)
        drift.keep()
    assert len(rows(tmp_path)) == 3
    fresh = made()
    fresh.keep()
    assert fresh.window()[0] == 2
    clock.now += 25 * HOUR
    see(one, 1)
    one.keep()
    assert [row[:3] for row in rows(tmp_path)] == [("mri-live", "mr-denoise", "b")]


def test_a_row_of_a_clock_that_was_ahead_goes(made, clock, tmp_path):
    drift = made()
    clock.now += 1e6 * HOUR
    see(drift, 1)
    drift.keep()
    clock.now = Clock.now
    see(drift, 1)
    drift.keep()
    assert [row[3] for row in rows(tmp_path)] == [480_000]


def test_counting_waits_for_no_disk_and_what_was_not_written_is_written_later(tmp_path, clock, caplog, monkeypatch):
    monkeypatch.setattr("appliance.buffer.schema._BUSY_TIMEOUT_S", 0.2)
    drift = Drift("mr-denoise", KNOWN, DriftCounts(tmp_path, "mri-live", "mr-denoise", "b"), clock)
    drift.keep()  # opens
    intruder = sqlite3.connect(tmp_path / "nearscan.sqlite", isolation_level=None)
    intruder.execute("BEGIN IMMEDIATE")
    see(drift, 1)
    keeping = threading.Thread(target=drift.keep)
    keeping.start()
    see(drift, 20)  # while it waits
    assert drift.window()[0] == 21
    keeping.join(20)
    assert drift.status()["last_error"].startswith("buffer: not written: database is locked")
    drift.keep()
    assert [text[:42] for text in caplog.messages] == ["drift of mr-denoise: not kept, tried again"], "said once"
    intruder.execute("ROLLBACK")
    intruder.close()
    drift.keep()
    assert drift.status()["last_error"] == ""
    assert [row[4] for row in rows(tmp_path)] == [21]
    drift.close()


def test_a_disk_that_is_not_there_is_said_and_waited_for(tmp_path):
    folder = tmp_path / "later"
    drift = Drift("mr-denoise", KNOWN, DriftCounts(folder, "mri-live", "mr-denoise", "b"))
    see(drift, 3)
    drift.keep()
    assert drift.status()["last_error"].startswith("buffer: cannot open ")
    folder.mkdir()
    drift.keep()
    assert drift.status()["last_error"] == ""
    assert [row[4] for row in rows(folder)] == [3]
    drift.close()


KILLED = """
import sys, time, numpy as np
from pathlib import Path
from appliance.buffer.drift_counts import DriftCounts
from appliance.frames import Frame, Scan
from appliance.inference import drift_watch
drift_watch._KEEP_EVERY_S = 0.05
drift = drift_watch.Drift("mr-denoise", None, DriftCounts(Path(sys.argv[1]), "mri-live", "mr-denoise", "b"))
drift.start()
image = np.ones((64, 64), np.float32)
while True:
    drift.observe(image, image, 0.1, 1.0)
    print(drift.window()[0], flush=True)
    time.sleep(0.002)
"""


def test_what_was_kept_survives_kills_and_adds_up(tmp_path):
    """Three processes, each killed in full swing; each goes on from what was on disk."""
    seen = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        told = [int(child.stdout.readline()) for _ in range(300)]
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate()
        last = int((rest.splitlines() or [told[-1]])[-1])
        database = Database(tmp_path / "nearscan.sqlite")
        kept = sum(row[0] for row in database.query("SELECT n_frames FROM drift"))
        database.close()
        assert seen < kept <= last + 1, "the last one may have been counted and not yet told"
        seen = kept
    assert seen > 300


def test_the_thread_of_a_running_pipeline_keeps_the_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(drift_watch, "_KEEP_EVERY_S", 0.02)
    drift = Drift("mr-denoise", KNOWN, DriftCounts(tmp_path, "mri-live", "mr-denoise", "b"))
    drift.start()
    see(drift, 4)
    until = time.monotonic() + 20
    while not ((tmp_path / "nearscan.sqlite").exists() and drift._loaded and rows(tmp_path)):
        assert time.monotonic() < until
        time.sleep(0.01)
    see(drift, 2)
    drift.close()
    assert sum(row[4] for row in rows(tmp_path)) == 6
    assert not drift._thread.is_alive()


def test_one_watch_for_each_model_of_a_pipeline(tmp_path):
    context = Context("mri-live", tmp_path, tmp_path)
    live = open_model("mr-denoise", context)
    drift = open_drift(live, context)
    assert open_drift(live, context) is drift
    assert open_drift(live, Context("mri-second", tmp_path, tmp_path)) is not drift


def test_the_stage_counts_the_frames_that_it_denoised(tmp_path):
    context = Context("mri-live", tmp_path, tmp_path)
    for strength, counted in ((1.0, 3), (0.0, 3)):  # the second leaves images as they are: nothing to count
        stage = make_stage(Settings(strength=strength), context)
        stage.begin(Scan("s", "MR", ("y", "x"), (64, 64), "float32", 0))
        for n, (image, _, _) in enumerate(frames(3)):
            image.flags.writeable = False
            stage.frame(
                Frame(
                    scan_id="s", sequence=n, array=image, axes=("y", "x"), affine=np.eye(4),
                    acquired_ns=1, received_ns=2,
                )
            )  # fmt: skip
        status = stage.status()["drift"]
        assert status["frames"] == counted
        assert {sum(counts) for counts in status["counts"].values()} == {counted * 64 * 64}


def status_of(drift):
    own = {"frames": 1, "model": "mr-denoise", "drift": drift.status()}
    return {
        "pipeline-mri-live": {
            "state": "running", "time_ns": time.time_ns(), "pipeline": "mri-live", "frames": {"in": 1},
            "stages": {"denoise": own, "reconstruct": {"frames": 1}},
        }
    }  # fmt: skip


def test_metrics_are_what_prometheus_reads(made):
    drift = made()
    see(drift, 60, brightness=4.0)
    body, _ = write_metrics(status_of(drift), None)
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    key = {"pipeline": "mri-live", "operator": "denoise", "model": "mr-denoise"}

    def values(name, **more):
        wanted = {**key, **more}
        return [one.value for one in families[name].samples if wanted.items() <= one.labels.items()]

    status = drift.status()
    assert values("nearscan_model_unlike_card") == [2]
    for name in QUANTITIES:
        assert values("nearscan_model_drift_distance", quantity=name) == [status["distance"][name]]
        assert values("nearscan_model_drift_limit", quantity=name) == [status["limit"][name]]
        below = values("nearscan_model_values", quantity=name)
        assert np.diff([0, *below]).tolist() == status["counts"][name]
        bounds = [one.labels["le"] for one in families["nearscan_model_values"].samples]
        assert bounds.count("+Inf") == len(QUANTITIES)


def test_a_model_without_reference_has_histograms_and_no_verdict(made):
    drift = made(known=None)
    see(drift, 60)
    body, _ = write_metrics(status_of(drift), None)
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["nearscan_model_unlike_card"].samples == []
    assert families["nearscan_model_drift_distance"].samples == []
    assert len(families["nearscan_model_values"].samples) == sum(map(len, drift.status()["counts"].values()))


def test_people_read_it_in_the_status_and_no_alarm_is_raised(made):
    drift = made()
    see(drift, 60, brightness=4.0)
    status = status_of(drift)
    lines = table(status).splitlines()
    assert lines[-1] == f"pipeline-mri-live denoise: mr-denoise in the last 24 h: {drift.status()['trend']}"
    assert lines[-1].count("unlike its card") == 1
    assert not any(line.startswith("ALARM") for line in lines)
