# SPDX-License-Identifier: Apache-2.0
"""What is drawn next for a page: fresh before fine, and nothing that nobody waits for."""

import time

import numpy as np
import pytest

from appliance.console.kpis import Kpis
from appliance.console.renderer import Renderer, _Job
from appliance.console.viewer import ON_THE_WAY, Viewer
from appliance.console.volumes import Arrived
from appliance.imaging.volume_message import Volume
from appliance.render.view import View


def arrived(number, **changed):
    fields = {
        "pipeline": "ct", "scan_id": "s", "modality": "CT", "array": np.zeros((4, 4, 4), np.int16),
        "affine": np.eye(4), "value_range": (0, 1), "acquired_ns": 0, "received_ns": 0, "version": number, **changed,
    }  # fmt: skip
    return Arrived(number, Volume(**fields), 0)


@pytest.fixture
def viewer():
    viewer = Viewer("ct", "viewer", Kpis(), lambda header, encoded: None)
    viewer.want(View())
    return viewer


def draw(viewer, volume):
    """Draw what is next and have the page see it; gives its level, or None."""
    task = viewer.next_task(volume)
    if task is None:
        return None
    viewer.done(task, {}, b"")
    viewer.seen(viewer._last.number)
    return task.level


def test_the_first_image_is_soon_there_and_then_gets_finer(viewer):
    assert draw(viewer, arrived(1)) == 0
    volume = arrived(2)
    assert [draw(viewer, volume) for _ in range(4)] == [1, 2, None, None]
    assert draw(viewer, arrived(3, scan_id="another")) == 0


def test_while_dragging_there_are_drafts_one_for_each_view_and_volume(viewer):
    volume = arrived(1)
    viewer.want(View(dragging=True))
    assert [draw(viewer, volume), draw(viewer, volume)] == [0, None]
    viewer.want(View(dragging=True, zoom=2.0))
    assert [draw(viewer, volume), draw(viewer, arrived(2))] == [0, 0]
    viewer.want(View(zoom=2.0))
    volume = arrived(3)
    assert [draw(viewer, volume) for _ in range(3)] == [1, 2, None]


def test_a_page_that_is_behind_gets_nothing_more_and_then_the_newest(viewer):
    for number in range(ON_THE_WAY):
        viewer.done(viewer.next_task(arrived(number)), {}, b"")
    assert viewer.next_task(arrived(8)) is None
    viewer.seen(1)
    assert viewer.next_task(arrived(9)).arrived.number == 9


def test_where_sharp_pictures_come_late_a_newer_volume_is_a_draft_first(viewer):
    draw(viewer, arrived(1))
    viewer.is_slow = True
    volume = arrived(2)
    assert [draw(viewer, volume) for _ in range(4)] == [0, 1, 2, None]


@pytest.mark.parametrize(("level", "is_slow"), [(1, True), (2, False)])
def test_a_sharp_picture_that_takes_long_gives_way_to_a_newer_volume(viewer, tmp_path, level, is_slow):
    renderer = Renderer(tmp_path, ("ct",))
    old = arrived(1)
    while (task := viewer.next_task(old)).level < level:
        viewer.done(task, {}, b"")
        viewer.seen(viewer._last.number)
    job = renderer._jobs[viewer] = _Job(task, 1)
    renderer.volumes.newest["ct"] = old
    job.began_s = time.monotonic() - 1000
    renderer._give_up()
    assert viewer in renderer._jobs  # there is nothing newer
    renderer.volumes.newest["ct"] = arrived(2)
    job.began_s = time.monotonic() + 1000
    renderer._give_up()
    assert viewer in renderer._jobs  # it has begun just now
    job.began_s = time.monotonic() - 1000
    renderer._give_up()
    assert viewer not in renderer._jobs and viewer.is_slow == is_slow


def test_a_view_that_is_no_longer_wanted_is_not_drawn_to_its_end_but_a_draft_is(viewer):
    draft = viewer.next_task(arrived(1))
    viewer.want(View(zoom=2.0))
    assert not viewer.is_in_vain(draft)
    draw(viewer, arrived(1))
    sharp = viewer.next_task(arrived(2))
    assert not viewer.is_in_vain(sharp)
    viewer.want(View(zoom=3.0))
    assert viewer.is_in_vain(sharp)


def test_no_volume_is_held_by_what_is_remembered(viewer):
    for number in range(5):
        draw(viewer, arrived(number))
    remembered = [viewer._last, viewer._seen, *viewer._sent]
    assert not any(isinstance(value, Volume | Arrived) for one in remembered for value in vars(one).values())
