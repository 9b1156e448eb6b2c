# SPDX-License-Identifier: Apache-2.0
"""From the inbox to complete series, with a clock of our own."""

import threading
import time

import pytest
from received import SERIES, ct, receive

from appliance.buffer import series
from appliance.buffer.descriptions import undescribed
from appliance.dicom.admit import admit, admit_next
from appliance.dicom.follow_series import FollowSeries
from appliance.dicom.series import Report


@pytest.fixture
def alarms():
    return {}


@pytest.fixture
def look(buffer, alarms):
    """Describe what is there and follow; gives the series as it is now."""
    follow = FollowSeries(buffer, 60.0)

    def step(now=0.0, uid=SERIES, follow=follow):
        while admit_next(buffer, {}, alarms.__setitem__, now):
            pass
        follow.step(now)
        return series.one_series(buffer.database, uid)

    return step


def test_a_series_is_open_until_its_association_is_released(buffer, look):
    for number in (1, 2, 3):
        receive(buffer, ct(number), now=number)
        assert look().state == "open"
    series.end_associations(buffer.database, [("a", True)], 4.0)
    done = look(4.0)
    assert (done.state, done.reason) == ("complete", "association released after 3 instances")
    assert (done.n_instances, done.last_s, done.modality, done.reopened) == (3, 3.0, "CT", 0)
    assert (done.first_instance_id, done.last_instance_id) == (1, 3)


def test_an_association_that_broke_is_no_end_of_a_series(buffer, look):
    for number in (1, 2):
        receive(buffer, ct(number))
    series.end_associations(buffer.database, [("a", False)], 1.0)
    assert look(1.0).state == "open"
    assert look(59.9).state == "open"
    assert look(60.0).reason == "silence: nothing came for 60 s"


def test_what_came_before_the_release_is_waited_for_although_it_is_not_described_yet(buffer, alarms):
    for number in (1, 2):
        receive(buffer, ct(number))
    admit_next(buffer, {}, alarms.__setitem__, 0.0)
    receive(buffer, ct(3))
    series.end_associations(buffer.database, [("a", True)], 1.0)
    follow = FollowSeries(buffer, 60.0)
    assert follow.step(1.0) == 0
    admit_next(buffer, {}, alarms.__setitem__, 1.0)
    assert follow.step(1.0) == 1
    assert series.one_series(buffer.database, SERIES).n_instances == 3


def test_a_late_instance_opens_the_series_again_and_says_so(buffer, look, alarms):
    for number in (1, 2):
        receive(buffer, ct(number, ImagesInAcquisition=2))
    assert look().reason == "expected count: 2 of 2 instances are here"
    receive(buffer, ct(3, ImagesInAcquisition=2), now=100.0)
    follow = FollowSeries(buffer, 60.0, lambda uid: Report("COMPLETED", [f"{uid}.9"]))  # holds it open
    late = look(100.0, follow=follow)
    assert (late.state, late.reopened) == ("open", 1)
    assert late.reason == "open again after: expected count: 2 of 2 instances are here"
    assert alarms["late instances"] == (
        "receive: 1 series were complete and got more instances; they are open again and are done again; "
        "look at how their sender ends a series"
    )
    assert look(160.0).state == "complete"
    events = [row[0] for row in buffer.database.query("SELECT event FROM audit WHERE event LIKE 'series%' ORDER BY id")]
    assert events == ["series complete", "series opened again", "series complete"]


def test_the_report_of_mpps_is_asked_for(buffer, look):
    receive(buffer, ct(1))
    asked = []
    follow = FollowSeries(buffer, 60.0, lambda uid: asked.append(uid) or Report("COMPLETED", [f"{SERIES}.1"]))
    assert look(follow=follow).reason == "MPPS completed: all its 1 images are here"
    assert asked == [SERIES]


def test_an_instance_held_for_a_conflict_belongs_to_no_series(buffer, look):
    receive(buffer, ct(1))
    assert receive(buffer, ct(1, PatientID="OTHER")).conflict
    assert look().n_instances == 1
    assert len(series.members(buffer.database, SERIES)) == 1


def test_series_that_interleave_are_counted_apart(buffer, look):
    for number in (1, 2):
        receive(buffer, ct(number))
        receive(buffer, ct(number, series="1.2.9", ImagesInAcquisition=2))
    assert look(uid="1.2.9").state == "complete"
    assert look().state == "open"
    assert [one.series_instance_uid for one in series.open_series(buffer.database)] == [SERIES]
    assert [one.series_instance_uid for one in series.changed_since(buffer.database, 3)] == ["1.2.9"]


def test_a_clock_that_was_set_back_delays_no_series(buffer, look):
    receive(buffer, ct(1), now=1e9)
    assert look(500.0).state == "open"
    assert look(559.0).state == "open"
    assert look(560.0).state == "complete"


def test_after_a_restart_the_silence_is_that_of_the_instances(buffer, look):
    receive(buffer, ct(1), now=10.0)
    assert look(11.0).state == "open"
    assert look(70.0, follow=FollowSeries(buffer, 60.0)).state == "complete"


def test_finding_what_is_to_be_described_does_not_look_at_all_that_is_kept(buffer, look):
    receive(buffer, ct(1))
    look()
    plan = buffer.database.query(
        "EXPLAIN QUERY PLAN SELECT i.id FROM instances i WHERE i.id > coalesce((SELECT max(instance_id) FROM"
        " descriptions), 0) AND +i.origin = 'received' ORDER BY i.id LIMIT 1"
    )
    assert any("USING INTEGER PRIMARY KEY (rowid>?)" in row[3] for row in plan)
    assert undescribed(buffer, 10) == []


def test_the_loop_describes_and_completes(buffer, alarms):
    stop = threading.Event()
    thread = threading.Thread(target=admit, args=(buffer, {}, FollowSeries(buffer, 60.0), stop, alarms.__setitem__))
    thread.start()
    for number in (1, 2):
        receive(buffer, ct(number, ImagesInAcquisition=2), now=time.time())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = series.one_series(buffer.database, SERIES)
        if found and found.state == "complete":
            break
        time.sleep(0.02)
    stop.set()
    thread.join(10)
    assert found.reason == "expected count: 2 of 2 instances are here"
