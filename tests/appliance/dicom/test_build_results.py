# SPDX-License-Identifier: Apache-2.0
"""Spooled images become instances and deliveries, once; what cannot be built is kept and told, never named."""

import logging
import threading
from dataclasses import replace

import numpy as np

from appliance.buffer import NewJob, segments
from appliance.dicom import build_results as module
from appliance.dicom.build_results import MAX_ATTEMPTS, build_next, build_results
from appliance.dicom.spool import KIND, pack


def no_alarm(key, text):
    assert text == "", (key, text)


def test_a_job_becomes_both_series_owed_to_each_destination(buffer, make_spooled):
    buffer.put_jobs([pack(make_spooled(n, to=("pacs", "archive")), 7) for n in range(3)], 1)
    assert [build_next(buffer, no_alarm, 1) for _ in range(4)] == [True, True, True, False]
    counts = buffer.counts()
    assert (counts["produced"], counts["queued"], counts["jobs"]) == (6, 12, 0)
    assert [d.priority for d in buffer.outbox.claim("archive", 1)] == [7] * 6


def test_the_same_image_spooled_twice_is_owed_once(buffer, make_spooled):
    for _ in range(2):
        buffer.put_jobs([pack(make_spooled(), 5)], 1)
        build_next(buffer, no_alarm, 1)
    counts = buffer.counts()
    assert (counts["produced"], counts["queued"], counts["conflicts"]) == (2, 2, 0)


def test_another_image_under_the_same_uid_raises_an_alarm(buffer, make_spooled):
    alarms = {}
    for seed in (1, 2):
        array = np.full((48, 32), seed, np.float32)
        buffer.put_jobs([pack(make_spooled(denoised=False, array=array), 5)], 1)
        build_next(buffer, alarms.__setitem__, 1)
    assert alarms == {
        "dicom_results conflict": "dicom_results: a result's UID is here with other bytes; both kept, one held"
    }
    assert buffer.counts()["held"] == 1


def test_a_job_that_cannot_be_built_is_retried_then_quarantined_and_names_nobody(buffer, make_spooled, caplog):
    caplog.set_level(logging.DEBUG)
    job = pack(make_spooled(), 5)
    job = replace(job, meta={**job.meta, "identity": {**job.meta["identity"], "Muster^Erika": "SECRET-4711"}})
    buffer.put_jobs([job], 1)
    alarms, now = {}, 1.0
    for attempt in range(MAX_ATTEMPTS):
        assert buffer.counts()["jobs_quarantined"] == 0
        assert build_next(buffer, alarms.__setitem__, now), attempt
        assert not build_next(buffer, alarms.__setitem__, now)
        now += 1000
    counts = buffer.counts()
    assert (counts["jobs_quarantined"], counts["jobs"], counts["produced"]) == (1, 0, 0)
    (text,) = alarms.values()
    assert "cannot be built (TypeError in unpack, line" in text
    assert text.endswith("it is kept in quarantine, report it")
    everything = caplog.text + text + str(buffer.database.query("SELECT last_error FROM jobs"))
    everything += str(buffer.database.query("SELECT * FROM audit"))
    assert "Muster" not in everything
    assert "4711" not in everything


def test_an_image_without_geometry_is_quarantined_with_words(buffer, make_spooled):
    buffer.put_jobs([pack(make_spooled(affine=np.zeros((4, 4))), 5)], 1)
    alarms, now = {}, 1.0
    while build_next(buffer, alarms.__setitem__, now):
        now += 1000
    assert "rows and columns are not orthogonal; the source gave a wrong geometry" in str(alarms)
    assert buffer.counts()["jobs_quarantined"] == 1


def test_a_full_disk_costs_no_attempt(buffer, make_spooled, monkeypatch):
    buffer.put_jobs([pack(make_spooled(), 5)], 1)
    stop, alarms = threading.Event(), []
    write, calls = segments._write_all, []

    def full_twice(*args):
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(28, "No space left on device")
        return write(*args)

    def alarm(key, text):
        alarms.append((key, text))
        if len(calls) > 2 and not text:
            stop.set()

    monkeypatch.setattr(segments, "_write_all", full_twice)
    monkeypatch.setattr(module, "_IDLE_S", 0.001)
    build_results(buffer, stop, alarm)
    told = "buffer: not written: No space left on device; check the disk of site.data_dir"
    assert [text for key, text in alarms if text] == [told] * 2
    assert buffer.counts()["produced"] == 2


def test_a_job_of_another_kind_is_left_alone(buffer):
    buffer.put_jobs([NewJob("segment", {}, b"")], 1)
    assert KIND != "segment"
    assert not build_next(buffer, no_alarm, 1)
