# SPDX-License-Identifier: Apache-2.0
"""The sink keeps every image durably, waits for the disk, and never names a patient."""

import logging
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from appliance.buffer import Buffer
from appliance.context import Context
from appliance.dicom import keep_results
from appliance.dicom.spool import KIND, unpack
from appliance.errors import ScanError, StorageError
from appliance.frames import Applied, Encoding, End, Finding, Frame, Identity, Mark, Scan, read_only
from operators.sinks.dicom_results import Settings, make

SECRETS = ("Muster", "4711")


def scan(**changes):
    values = {
        "scan_id": "scan-1",
        "modality": "MR",
        "axes": ("y", "x"),
        "shape": (6, 4),
        "dtype": "float32",
        "started_ns": 1,
        "identity": Identity(patient_name="Muster^Erika", patient_id="4711"),
        "encoding": Encoding((8, 6, 1), (4, 6, 1), (80.0, 60.0, 5.0), (40.0, 60.0, 5.0), 2, te_ms=1.5),
        "attributes": {"vendor": "x", "header": object()},
    }
    return Scan(**(values | changes))


def frame(sequence, **changes):
    values = {
        "scan_id": "scan-1",
        "sequence": sequence,
        "array": read_only(np.full((6, 4), 1.0 + sequence, np.float32)),
        "original": read_only(np.full((6, 4), 0.5 + sequence, np.float32)),
        "axes": ("y", "x"),
        "affine": np.eye(4),
        "acquired_ns": 5,
        "received_ns": 6,
        "provenance": (Applied("denoise", "1", "ab", "m", "d", "e"),),
        "attachments": {"kspace": np.zeros((2, 6, 8), np.complex64)},
    }
    return Frame(**(values | changes))


@pytest.fixture
def alarms():
    return {}


@pytest.fixture
def context(tmp_path, alarms):
    def alarm(key, text):
        alarms[key] = text

    return Context(pipeline="p", data_dir=tmp_path, run_dir=tmp_path, destinations=("pacs", "archive"), alarm=alarm)


def jobs(data_dir: Path):
    buffer = Buffer(data_dir)
    claimed = iter(lambda: buffer.next_job(KIND, 1e12), None)
    spooled = [(job, unpack(job.meta, buffer.read_job(job))) for job in claimed]
    buffer.close()
    return spooled


def run(context, frames, **settings):
    sink = make(Settings.model_validate({"to": ["pacs"], **settings}), context)
    sink.begin(scan())
    for one in frames:
        sink.frame(one)
    sink.end(End("scan-1", "complete", n_frames=len(frames)))
    sink.close()
    return sink


def test_every_frame_is_kept_in_order_with_both_images_and_what_was_said_of_them(context, tmp_path):
    finding = Finding("spike", "RF spike", where={"line": np.int64(3)}, measured=np.float32(0.5))
    frames = [frame(n, marks=(Mark("detect", "late"),), findings=(finding,)) for n in range(40)]
    sink = run(context, frames, to=["pacs", "archive"], priority=8)
    got = jobs(tmp_path)
    assert [spooled.frame.sequence for _, spooled in got] == list(range(40))
    for (job, spooled), sent in zip(got, frames, strict=True):
        assert job.priority == 8
        assert list(spooled.images) == ["reconstructed", "denoised"]
        np.testing.assert_array_equal(spooled.images["reconstructed"], sent.original)
        np.testing.assert_array_equal(spooled.images["denoised"], sent.array)
        assert (spooled.frame.marks, spooled.frame.provenance) == (sent.marks, sent.provenance)
        assert spooled.frame.findings == (finding,)
        assert (spooled.scan.identity, spooled.scan.encoding) == (scan().identity, scan().encoding)
        assert spooled.scan.attributes == {"vendor": "x"}
        assert spooled.destinations == ("pacs", "archive")
    status = sink.status()
    assert (status["spooled"], status["pending"], status["bytes"]) == (40, 0, 40 * 2 * 6 * 4 * 4)


def test_scale_and_window_are_fixed_by_the_first_image(context, tmp_path):
    run(context, [frame(n) for n in range(3)])
    assert {(spooled.scale, spooled.window) for _, spooled in jobs(tmp_path)} == {(8191 / 0.5, (0.5, 0.5))}


@pytest.mark.parametrize(
    ("series", "denoised", "kept"),
    [
        (["reconstructed", "denoised"], True, ["reconstructed", "denoised"]),
        (["reconstructed"], True, ["reconstructed"]),
        (["denoised"], True, ["denoised"]),
        (["reconstructed", "denoised"], False, ["reconstructed"]),
        (["denoised"], False, ["reconstructed"]),  # the original is never lost
    ],
)
def test_series(context, tmp_path, series, denoised, kept):
    run(context, [frame(0) if denoised else frame(0, original=None)], series=series)
    ((_, spooled),) = jobs(tmp_path)
    assert list(spooled.images) == kept


def test_the_end_is_recorded(context, tmp_path):
    run(context, [frame(0)])
    buffer = Buffer(tmp_path)
    assert buffer.database.query("SELECT subject, detail FROM audit WHERE event = 'scan end'") == [
        ("scan-1", "complete, 1 frames: ")
    ]
    buffer.close()


def test_while_the_disk_refuses_images_wait_and_the_source_is_told(context, tmp_path, alarms, monkeypatch):
    monkeypatch.setattr(keep_results, "_RETRY_S", 0.01)
    sink = make(Settings(to=("pacs",)), context)
    put, full = sink._keep._buffer.put_jobs, [True]

    def refuse(batch, now):
        if full[0]:
            raise StorageError("buffer: 1.0 GB are free, 2.0 GB are reserved")
        return put(batch, now)

    monkeypatch.setattr(sink._keep._buffer, "put_jobs", refuse)
    sink.begin(scan())
    for n in range(keep_results.QUEUE_ITEMS):
        sink.frame(frame(n))
    while not alarms:
        sink._keep._closing.wait(0.001)
    assert sink.backlog() >= 1
    assert "are reserved; images wait and the source stops reading" in alarms["dicom_results"]
    assert sink.status()["spooled"] == 0
    full[0] = False
    sink.close()
    assert (sink.backlog(), alarms["dicom_results"]) == (0, "")
    assert len(jobs(tmp_path)) == keep_results.QUEUE_ITEMS


def test_what_could_not_be_kept_at_shutdown_is_told(context, alarms, monkeypatch):
    monkeypatch.setattr(keep_results, "_FLUSH_S", 0.05)
    sink = make(Settings(to=("pacs",)), context)
    monkeypatch.setattr(sink._keep._buffer, "put_jobs", lambda batch, now: (_ for _ in ()).throw(StorageError("full")))
    sink.begin(scan())
    sink.frame(frame(0))
    sink.close()
    assert "1 results were not kept: full" in alarms["dicom_results"].replace("2 results", "1 results")
    sink._keep._thread.join(10)
    sink._keep._buffer.close()


def test_an_unknown_destination_is_refused_with_a_suggestion(context):
    with pytest.raises(ValueError, match=r"dicom_results.to: unknown destination 'pac'; did you mean 'pacs'"):
        make(Settings(to=("pac",)), context)
    with pytest.raises(ValueError, match=r"unknown destination 'xyz'; known: pacs, archive"):
        make(Settings(to=("xyz",)), context)


@pytest.mark.parametrize("values", [{}, {"to": []}, {"to": ["pacs"], "series": []}, {"to": ["pacs"], "priority": 10}])
def test_settings_are_bounded(values):
    with pytest.raises(ValidationError):
        Settings.model_validate(values)


@pytest.mark.parametrize("changes", [{"modality": "US"}, {"axes": ("coil", "ky", "kx")}])
def test_what_it_cannot_deliver_is_refused_at_the_start(context, tmp_path, changes):
    sink = make(Settings(to=("pacs",)), context)
    with pytest.raises(ScanError, match=r"dicom_results: takes MR images \('y', 'x'\), got .*; put reconstruct"):
        sink.begin(scan(**changes))
    sink.frame(frame(0))
    sink.close()
    assert jobs(tmp_path) == []


def test_no_patient_in_log_status_or_alarm(context, tmp_path, alarms, caplog):
    caplog.set_level(logging.DEBUG)
    sink = run(context, [frame(0)])
    told = caplog.text + str(sink.status()) + str(alarms) + repr(scan()) + repr(frame(0))
    assert not [secret for secret in SECRETS if secret in told]
