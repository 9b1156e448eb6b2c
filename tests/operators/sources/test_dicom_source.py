# SPDX-License-Identifier: Apache-2.0
"""Received series as scans: in order, once in effect whatever crashes, and again when they grow."""

import tarfile
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from received import SERIES, ct, receive

from appliance import config
from appliance.buffer import Buffer, progress, series
from appliance.context import Context
from appliance.dicom.admit import admit_next
from appliance.dicom.build_results import build_next
from appliance.dicom.follow_series import FollowSeries
from appliance.dicom.inbox_scan import scan_id_for
from appliance.errors import ConfigError
from appliance.frames import End, Frame, Scan
from operators.sinks import dicom_results
from operators.sources import dicom

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")


class Box:
    """A buffer, what describes and follows it, and a pipeline's source that is stepped by hand."""

    def __init__(self, folder):
        self.folder, self.alarms = folder, {}
        self.buffer = Buffer(folder)
        self.follow = FollowSeries(self.buffer, 60.0)
        self.sources = []

    def source(self, through=lambda scan_id: True, **settings):
        context = Context("ct_watch", self.folder, self.folder, alarm=self.alarms.__setitem__, is_through=through)
        self.sources.append(dicom.make(dicom.Settings(**settings), context))
        return self.sources[-1]

    def receive(self, *files, now=0.0, association="a"):
        for data in files:
            receive(self.buffer, data, now, association)
        while admit_next(self.buffer, {}, self.alarms.__setitem__, now):
            pass
        self.follow.step(now)

    def release(self, now=1.0, association="a"):
        series.end_associations(self.buffer.database, [(association, True)], now)
        self.follow.step(now)

    def close(self):
        for one in self.sources:
            one._decoder.close()
            one._buffer.close()
        self.buffer.close()


@pytest.fixture
def box(tmp_path):
    one = Box(tmp_path / "data")
    yield one
    one.close()


def step(source):
    """What it emits until it has had nothing to do three times: the sinks are asked, and what is done is told, then."""
    out, idle = [], 0
    while idle < 3:
        idle = 0 if source._step(out.append) else idle + 1
    return out


def frames_of(messages):
    return [one for one in messages if isinstance(one, Frame)]


def values(messages):
    """Which CT slices of `ct` these are."""
    return [int((one.array[0, 0] + 1024) / 2) for one in frames_of(messages)]


def test_a_series_is_a_scan_with_its_images_as_they_arrive(box):
    source = box.source()
    assert step(source) == []
    box.receive(ct(5), now=100.5)
    first = step(source)
    assert [type(one) for one in first] == [Scan, Frame]
    scan = first[0]
    assert (scan.scan_id, scan.modality, scan.axes, scan.dtype) == (
        scan_id_for("ct_watch", SERIES, 1), "CT", ("y", "x"), "float32",
    )  # fmt: skip
    assert scan.started_ns == 100_500_000_000
    assert (scan.source, scan.identity.patient_id) == ("dicom CT1", "SECRET-4711")
    assert "SECRET" not in repr(first)
    box.receive(ct(3), ct(4), now=101)
    more = step(source)
    assert values(more) == [3, 4], "in the order of arrival"
    box.release()
    (end,) = step(source)
    assert end == End(scan.scan_id, "complete", "association released after 3 instances", 3)
    everything = frames_of(first + more)
    assert [one.sequence for one in everything] == [0, 1, 2]
    assert [one.position.slice for one in everything] == [0, 1, 2]
    assert not everything[0].array.flags.writeable
    assert source.status() == {
        "sessions": 0, "scans": 1, "scans_not_complete": 0, "instances_without_image": 0,
        "last_reason": "association released after 3 instances",
    }  # fmt: skip


def test_a_scan_says_what_its_images_are(box):
    source = box.source()
    assert step(source) == []
    box.receive(ct(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), ct(1, series="1.2.8"))
    told = [one.attributes for one in step(source) if isinstance(one, Scan)]
    assert [(each["image_type"], each["clips"]) for each in told] == [
        (("ORIGINAL", "PRIMARY", "LOCALIZER"), True),
        ((), True),
    ]


def test_only_what_came_since_the_pipeline_is_there(box):
    box.receive(ct(1, series="1.2.7"))
    source = box.source()
    assert step(source) == []
    box.receive(ct(1))
    assert values(step(source)) == [1]
    box.receive(ct(2, series="1.2.7"))
    assert values(step(source)) == [1, 2], "it grew: the whole series"


@pytest.mark.parametrize(
    ("select", "taken"),
    [
        ({}, True),
        ({"Modality": "CT", "SeriesDescription": "head*"}, True),
        ({"SeriesDescription": "*thorax*"}, False),
        ({"CallingAETitle": "CT1"}, True),
        ({"SliceThickness": "<=3"}, False),
        ({"Modality": ["MR", "CT"]}, True),
    ],
)
def test_which_series(box, select, taken):
    source = box.source(select=select)
    step(source)
    box.receive(ct(1, SeriesDescription="Head 5.0"))
    assert bool(step(source)) is taken


def test_what_is_no_image_of_ours_is_left_alone(box):
    source = box.source()
    step(source)
    box.receive(ct(1, Modality="SR"))
    assert step(source) == []


def test_series_that_interleave_are_two_scans(box):
    source = box.source()
    step(source)
    for number in (1, 2):
        box.receive(ct(number), ct(number + 10, series="1.2.9"))
    box.release()
    out = step(source)
    by_scan = {}
    for frame in frames_of(out):
        by_scan.setdefault(frame.scan_id, []).append(frame)
    assert [values(one) for one in by_scan.values()] == [[1, 2], [11, 12]]
    assert sum(isinstance(one, End) for one in out) == 2


def test_after_a_crash_the_running_scan_is_done_again_with_the_same_names(box):
    first = box.source()
    step(first)
    box.receive(ct(1), ct(2))
    before = step(first)
    second = box.source()  # the first is gone without a word
    box.receive(ct(3))
    box.release()
    after = step(second)
    assert values(after) == [1, 2, 3]
    for old, new in zip(frames_of(before), frames_of(after), strict=False):
        same = ("scan_id", "sequence", "acquired_ns", "position")
        assert [getattr(old, name) for name in same] == [getattr(new, name) for name in same]
    assert before[0].scan_id == after[0].scan_id
    assert step(box.source()) == [], "done is done"


def test_a_scan_is_not_done_before_its_sinks_have_it(box):
    through = set()
    first = box.source(through=through.__contains__)
    step(first)
    box.receive(ct(1), ct(2))
    box.release()
    out = step(first)
    assert isinstance(out[-1], End)
    assert progress.progress_of(box.buffer.database, "ct_watch", SERIES).running
    again = box.source(through=through.__contains__)
    assert values(step(again)) == [1, 2], "a crash now does it again"
    through.add(out[0].scan_id)
    step(again)
    assert not progress.progress_of(box.buffer.database, "ct_watch", SERIES).running
    assert step(box.source()) == []


def test_a_late_instance_makes_the_scan_again_under_another_name(box):
    source = box.source()
    step(source)
    box.receive(ct(1), ct(2))
    box.release()
    before = step(source)
    box.receive(ct(3), association="b")
    after = step(source)
    assert values(after) == [1, 2, 3]
    assert after[0].scan_id == before[0].scan_id + "-2"
    assert after[0].attributes["opening"] == 2
    box.release(association="b")
    (end,) = step(source)
    assert (end.scan_id, end.status, end.n_frames) == (after[0].scan_id, "complete", 3)
    assert series.one_series(box.buffer.database, SERIES).reopened == 1
    assert step(box.source()) == []


def test_one_that_comes_while_the_sinks_are_at_it_is_not_overlooked(box):
    through = set()
    source = box.source(through=through.__contains__)
    step(source)
    box.receive(ct(1), ct(2))
    box.release()
    first = step(source)
    box.receive(ct(3), association="b")
    step(source)
    through.add(first[0].scan_id)
    after = step(source)
    assert values(after) == [1, 2, 3]
    assert after[0].scan_id == first[0].scan_id + "-2"


def test_fewer_than_announced_is_incomplete(box):
    source = box.source()
    step(source)
    box.receive(ct(1, ImagesInAcquisition=3), ct(2, ImagesInAcquisition=3))
    box.release()
    end = step(source)[-1]
    assert (end.status, end.reason) == ("incomplete", "association released after 2 instances, 3 were expected")


def test_an_instance_without_image_is_told_and_moves_no_number(box):
    source = box.source()
    step(source)
    box.receive(ct(1), ct(2, PhotometricInterpretation="PALETTE COLOR"), ct(3))
    box.release()
    out = step(source)
    assert [one.sequence for one in frames_of(out)] == [0, 2]
    assert out[-1].status == "incomplete"
    assert out[-1].reason.endswith("; 1 instances gave no image: decode: it is no grey image")
    assert box.alarms["dicom source images"] == (
        f"dicom source: 1 instances of scan {out[0].scan_id} gave no image: decode: it is no grey image; "
        "they are kept and delivered"
    )


def test_one_that_is_too_large_or_purged_is_told(box):
    source = box.source(max_instance_mb=1)
    step(source)
    large = ct(1, Rows=600, Columns=1000, PixelData=bytes(1_200_000))
    box.receive(large, ct(2), ct(3))
    with box.buffer.database.transaction() as conn:
        conn.execute("UPDATE instances SET purged_s = 1 WHERE id = 2")
    box.release()
    out = step(source)
    assert values(out) == [3]
    source._running.clear()
    assert "1 MiB, 1 are taken; raise max_instance_mb" in out[-1].reason


def test_an_image_that_does_not_say_where_it_is_is_marked(box):
    source = box.source()
    step(source)
    box.receive(ct(1, ImagePositionPatient=None))
    (frame,) = frames_of(step(source))
    assert [(mark.stage, mark.reason) for mark in frame.marks] == [("dicom", "the image does not say where it is")]


def test_nothing_that_a_pipeline_is_at_is_purged(box):
    source = box.source()
    step(source)
    box.receive(ct(1), ct(2))
    with box.buffer.database.transaction() as conn:
        conn.execute(
            "INSERT INTO deliveries (instance_id, destination, state, priority, attempts, next_try_s, changed_s)"
            " SELECT id, 'pacs', 'committed', 0, 0, 0, 0 FROM instances"
        )
    assert box.buffer.purge(100.0, 0.0) == 0, "the series is open"
    step(source)
    box.release()
    assert box.buffer.purge(time.time(), 0.0) == 0, "the pipeline has not had it all"
    step(source)
    assert box.buffer.purge(time.time(), 0.0) == 2


def test_the_thread_runs_waits_for_the_disk_and_aborts_what_runs(box, monkeypatch):
    source, out = box.source(), []
    broken = threading.Event()
    real = dicom.changed_since

    def changed(database, mark):
        if not broken.is_set():
            broken.set()
            raise dicom.StorageError("buffer: not readable")
        return real(database, mark)

    monkeypatch.setattr(dicom, "changed_since", changed)
    monkeypatch.setattr(dicom, "_RETRY_S", 0.01)
    thread = threading.Thread(target=source.run, args=(out.append,))
    thread.start()
    assert broken.wait(20)
    assert box.alarms["dicom source"] in ("", "buffer: not readable")
    box.receive(ct(1))
    while not frames_of(out):
        time.sleep(0.01)
    source.stop()
    thread.join(20)
    box.sources.clear()
    assert not thread.is_alive()
    assert out[-1] == End(
        out[0].scan_id,
        "aborted",
        "the pipeline stops; the scan is done again from its beginning when it runs again",
        1,
    )


@needs_data
@pytest.mark.filterwarnings("ignore")
def test_a_real_head_lies_where_its_files_say(box):
    with tarfile.open(DATA / "series" / "ct_head_ge.tar.xz") as tar:
        files = [tar.extractfile(one).read() for one in tar.getmembers() if one.name.endswith(".dcm")]
    source = box.source()
    step(source)
    box.receive(*files)
    box.release()
    frames = frames_of(step(source))
    assert len(frames) == len(files) == 28
    for frame, data in zip(frames, files, strict=True):
        ds = dcmread(BytesIO(data))
        row, column = np.array(ds.ImageOrientationPatient[:3]), np.array(ds.ImageOrientationPatient[3:])
        for x, y in ((0, 0), (511, 0), (0, 511), (17, 300)):
            expected = (
                np.array(ds.ImagePositionPatient) + row * ds.PixelSpacing[1] * x + column * ds.PixelSpacing[0] * y
            )
            np.testing.assert_allclose((frame.affine @ [x, y, 0, 1])[:3], expected, atol=1e-9)
        np.testing.assert_array_equal(frame.array, ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept)
    places = sorted(np.dot(one.affine[:3, 2], one.affine[:3, 3]) / np.linalg.norm(one.affine[:3, 2]) for one in frames)
    assert np.ptp(np.diff(places)) > 1, "uneven spacing stays uneven"


@needs_data
def test_results_made_again_after_a_crash_are_the_same_objects(box, tmp_path):
    """The pipeline dies after its first results are on disk; what it makes again is what is there already."""
    with tarfile.open(DATA / "series" / "mr_t1_siemens_HFS.tar.xz") as tar:
        files = [tar.extractfile(one).read() for one in tar.getmembers() if one.name.endswith(".dcm")][:4]
    for n_frames in (2, 4):
        source = box.source(through=lambda _: False)
        if n_frames == 2:
            step(source)
            box.receive(*files)
            box.release()
        context = Context("ct_watch", box.folder, box.folder, destinations=("pacs",), alarm=box.alarms.__setitem__)
        sink = dicom_results.make(dicom_results.Settings(to=("pacs",)), context)
        given = step(source)
        sink.begin(given[0])
        for frame in frames_of(given)[:n_frames]:
            sink.frame(frame)
        sink.close()
        while build_next(box.buffer, box.alarms.__setitem__, time.time()):
            pass
    counts = box.buffer.counts()
    assert (counts["produced"], counts["conflicts"], counts["jobs_quarantined"]) == (4, 0, 0)


def test_a_keyword_that_there_is_not_is_told_with_its_place():
    text = (
        "site: {name: x}\nlisten: {dicom: {port: 11112}}\npipelines:\n  a:\n"
        "    source: {dicom: {select: {Modalty: CT}}}\n    sinks: [preview]\n"
    )
    with pytest.raises(ConfigError) as caught:
        config.parse(text.encode(), "site.yaml")
    assert str(caught.value).startswith(
        "site.yaml:5:31: pipelines.a.source.dicom.select.Modalty: unknown keyword 'Modalty'; did you mean 'Modality'?"
    )
