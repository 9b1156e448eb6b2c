# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from appliance.igtl.rigid import rigid_fault, to_lps
from appliance.ultrasound.match_poses import MOST_WAITING, Chain, Limits, MatchPoses
from appliance.ultrasound.place_image import calibration, split

MS = 1_000_000
UTC = 1_700_000_000_000 * MS
WAIT_MS = 20
# of a real probe, sheared by 2.7 degrees: PLUS's spine phantom
CALIBRATION = """-0.00157821  0.0785919  -0.00803285  15.3978
                 -0.0839128   0.00372697  0.0153803   49.5705
                  0.0159024   0.00714276  0.0803604   -8.63446"""
IMAGE_TO_PROBE = calibration([float(number) for number in CALIBRATION.split()])
CHAIN = Chain("ProbeToTracker", IMAGE_TO_PROBE, "ReferenceToTracker", {"Stylus": "StylusToTracker"})
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def pose(time_ms, axis):
    """A hand that moves: known at any time."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.roll([0.4 + 1e-3 * time_ms, 0, 0], axis)).as_matrix()
    matrix[:3, 3] = np.roll([200.0, 0.05 * time_ms, -30], axis)
    return matrix


def matcher(**changes):
    limits = {"max_skew_ns": 50 * MS, "max_gap_ns": 100 * MS, "wait_ns": WAIT_MS * MS}
    return MatchPoses(CHAIN, Limits(**{**limits, **changes}))


def track(match, *times_ms, way_ms=2, names=CHAIN.names, clock_ms=0):
    for time_ms in times_ms:
        for axis, name in enumerate(CHAIN.names):
            if name in names:
                match.pose(name, pose(time_ms, axis), UTC + (time_ms + clock_ms) * MS, (time_ms + way_ms) * MS)


def show(match, time_ms, way_ms=5, clock_ms=0):
    match.image(time_ms, UTC + (time_ms + clock_ms) * MS, (time_ms + way_ms) * MS)


def only(found):
    (one,) = found
    return one


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 299))
def test_an_image_is_where_probe_and_reference_were_at_its_time(time_ms):
    match = matcher()
    show(match, time_ms)
    track(match, *range(0, 331, 30))
    found = only(match.take(time_ms * MS))
    assert found.image == time_ms and found.tracking.reason == "" and found.late_ns == 0
    before = time_ms // 30 * 30  # each sensor was measured every 30 ms; between, scipy's slerp is the oracle
    where = []
    for axis in range(3):
        ends = np.stack([pose(before, axis), pose(before + 30, axis)])
        matrix = pose(time_ms, axis)
        between = Slerp([0, 1], Rotation.from_matrix(ends[:, :3, :3]))((time_ms - before) / 30)
        matrix[:3, :3] = between.as_matrix()
        where.append(matrix)
    probe, reference, stylus = where
    expected = LPS @ np.linalg.inv(reference) @ probe @ IMAGE_TO_PROBE
    np.testing.assert_allclose(found.affine[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=1e-9)
    stylus_to_reference = np.linalg.inv(reference) @ stylus
    np.testing.assert_allclose(found.tracking.tools["Stylus"], LPS @ stylus_to_reference @ LPS, atol=1e-9)
    rigid = found.tracking.image_to_reference
    assert rigid_fault(rigid) == ""
    own = np.linalg.inv(rigid) @ found.affine
    assert own[1, 0] == pytest.approx(0, abs=1e-9) and own[:3, 3] == pytest.approx(0, abs=1e-9)
    assert np.linalg.norm(own[:3, 0]) == pytest.approx(0.08542, abs=1e-4), "mm a pixel"


def test_the_pose_measured_at_the_images_time_comes_out_as_it_came():
    match = matcher()
    track(match, 100)
    show(match, 100)
    found = only(match.take(0))
    expected = LPS @ np.linalg.inv(pose(100, 1)) @ pose(100, 0) @ IMAGE_TO_PROBE
    np.testing.assert_allclose(found.affine[:3, 3], expected[:3, 3], atol=1e-12)


def test_an_image_waits_for_the_pose_after_it_and_not_longer():
    match = matcher()
    track(match, 0, 30)
    show(match, 40)
    assert match.take(45 * MS) == [] and match.wait_ns(50 * MS) == 15 * MS
    track(match, 60)
    assert only(match.take(62 * MS)).affine is not None and match.wait_ns(62 * MS) is None
    show(match, 70)
    late = only(match.take((75 + WAIT_MS) * MS))
    assert late.affine is None and late.tracking.reason == "ProbeToTracker: no pose since 10 ms before the image"


def test_a_tracker_that_stopped_is_waited_for_once():
    match = matcher()
    track(match, 0, 30)
    show(match, 131)
    assert match.take(136 * MS) == []
    found = only(match.take((136 + WAIT_MS) * MS))
    assert found.tracking.image_to_reference is None
    assert found.tracking.reason == "ProbeToTracker: no pose since 101 ms before the image"
    show(match, 170)
    assert only(match.take(175 * MS)).affine is None
    track(match, 200)
    show(match, 210)
    assert match.take(215 * MS) == [], "it is back"
    track(match, 220)
    assert only(match.take(222 * MS)).affine is not None


def test_poses_that_come_with_each_of_few_images_are_waited_for():
    match = matcher()
    for time_ms in range(0, 3000, 250):  # as PLUS sends them: the image, then its poses
        show(match, time_ms)
        assert match.take((time_ms + 5) * MS) == []
        track(match, time_ms, way_ms=6)
        assert only(match.take((time_ms + 6) * MS)).affine is not None


def test_images_stay_in_order_and_are_not_heaped_up():
    match = matcher()
    for time_ms in range(MOST_WAITING):
        show(match, time_ms)
    assert match.take(5 * MS) == []
    show(match, MOST_WAITING)
    found = match.take(5 * MS)
    assert [each.image for each in found] == list(range(MOST_WAITING + 1)), "one too many: the wait is over"
    track(match, 0)
    show(match, 50)
    assert match.take(0) == [] and [each.image for each in match.take(0, at_once=True)] == [50]


def test_a_tool_that_is_not_seen_leaves_the_image_its_place():
    match = matcher()
    track(match, 0, 30, names=CHAIN.names[:2])
    show(match, 20)
    found = only(match.take((25 + WAIT_MS) * MS))
    assert found.affine is not None and found.tracking.tools == {}


@pytest.mark.parametrize("name", CHAIN.names[:2])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m * np.nan, "it holds NaN or infinite numbers"),
        (lambda m: m @ np.diag([1, 1, 1.5, 1]), "scaled"),
        (lambda m: m @ np.diag([1, 1, -1, 1]), "mirrored"),
        (lambda m: m + np.eye(4, k=1) * 0.2, "sheared|scaled"),
        (lambda m: m + np.eye(4, k=3) * 3e6, "it leads 3e.06 mm away"),
        (lambda m: np.eye(4), "the identity, which stands for not seen"),
    ],
)
def test_a_pose_that_is_none_places_no_image(name, spoil, words):
    match = matcher()
    track(match, 0)
    for axis, each in enumerate(CHAIN.names):
        matrix = pose(30, axis)
        match.pose(each, spoil(matrix) if each == name else matrix, UTC + 30 * MS, 32 * MS)
    track(match, 60, 90)
    for time_ms in (20, 30, 50):
        show(match, time_ms)
    show(match, 75)
    *refused, good = match.take(90 * MS)
    for found in refused:
        assert found.affine is None and found.tracking.image_to_reference is None and found.tracking.tools == {}
        assert re.search(f"^{name}: ({words})", found.tracking.reason)
    assert good.affine is not None and match.n_invalid_poses == 1


def test_a_pose_said_to_be_missing_places_no_image():
    match = matcher()
    track(match, 0)
    match.pose(CHAIN.probe, pose(10, 0), UTC + 10 * MS, 12 * MS, fault="its sender says MISSING")
    track(match, 20)
    show(match, 5)
    assert only(match.take(30 * MS)).tracking.reason == "ProbeToTracker: its sender says MISSING"


@pytest.mark.parametrize("jump", [np.array([80.0, 0, 0]), Rotation.from_rotvec([0, 0, np.pi])])
def test_a_sensor_taken_for_another_places_no_image(jump):
    match = matcher()
    track(match, 0, 20, 60, 80)
    wrong = pose(40, 0)
    if isinstance(jump, Rotation):
        wrong[:3, :3] = wrong[:3, :3] @ jump.as_matrix()
    else:
        wrong[:3, 3] += jump
    match = matcher()
    track(match, 0, 20)
    match.pose(CHAIN.probe, wrong, UTC + 40 * MS, 42 * MS)
    track(match, 40, names=CHAIN.names[1:])
    track(match, 60, 80)
    for time_ms in (10, 30, 40, 50, 60, 70):
        show(match, time_ms)
    found = match.take(200 * MS)
    assert [each.affine is not None for each in found] == [True, False, False, False, False, True]
    assert "faster than a hand" in found[1].tracking.reason


def test_clocks_that_do_not_agree_are_refused_and_said():
    match = matcher()
    for n in range(40):
        track(match, 30 * n, clock_ms=3_600_000)
        show(match, 30 * n - 5)
    found = match.take(0, at_once=True)
    assert all(each.affine is None for each in found)
    assert found[-1].tracking.reason == (
        "by their time stamps images arrive 3600003 ms later than poses, the limit is 50 ms; let one clock time both"
    )
    assert match.skew_ns == 3_600_003 * MS


def test_within_the_limit_the_stamps_count_as_they_are():
    match = matcher()
    track(match, *range(0, 300, 30))
    show(match, 100, way_ms=45)
    np.testing.assert_allclose(
        only(match.take(150 * MS)).affine[:3, 3],
        (LPS @ np.linalg.inv(pose(100, 1)) @ pose(100, 0) @ IMAGE_TO_PROBE)[:3, 3],
        atol=0.01,  # of a straight line between poses 30 ms apart
    )


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
@pytest.mark.parametrize("whose", ["images", "poses", "both"])
def test_a_clock_that_jumps_places_no_image_wrongly(whose, jump_ms):
    match, found = matcher(), []
    for n in range(80):
        clock_ms = jump_ms if n >= 40 else 0
        track(match, 30 * n, clock_ms=clock_ms if whose != "images" else 0)
        show(match, 30 * n - 5, way_ms=12, clock_ms=clock_ms if whose != "poses" else 0)
        found += match.take((30 * n + 2) * MS)
    found += match.take(0, at_once=True)
    assert [each.image for each in found] == [30 * n - 5 for n in range(80)]
    for each in found:
        if each.affine is not None:
            expected = LPS @ np.linalg.inv(pose(each.image, 1)) @ pose(each.image, 0) @ IMAGE_TO_PROBE
            np.testing.assert_allclose(each.affine[:3, 3], expected[:3, 3], atol=0.05)
    placed = [each.affine is not None for each in found]
    assert all(placed[2:40]), "before the jump"
    assert not placed[40], "across the jump"
    assert placed[-1] == (whose == "both"), "one clock again, if another"
    assert match.n_jumps == (2 if whose == "both" else 1)


@pytest.mark.parametrize("step_ms", [400, -400, 80, -80])
@pytest.mark.parametrize("whose", ["images", "poses", "both"])
def test_a_clock_that_is_set_by_less_than_a_second_places_no_image_wrongly(whose, step_ms):
    match, found = matcher(), []
    for n in range(400):
        clock_ms = step_ms if n >= 100 else 0
        track(match, 10 * n, clock_ms=clock_ms if whose != "images" else 0)
        if n % 3 == 1:
            show(match, 10 * n - 5, way_ms=6, clock_ms=clock_ms if whose != "poses" else 0)
        found += match.take((10 * n + 2) * MS)
    found += match.take(0, at_once=True)
    assert len(found) == 133
    for each in found:
        if each.affine is not None:
            expected = LPS @ np.linalg.inv(pose(each.image, 1)) @ pose(each.image, 0) @ IMAGE_TO_PROBE
            np.testing.assert_allclose(each.affine[:3, 3], expected[:3, 3], atol=0.05)
    placed = [each.affine is not None for each in found]
    assert all(placed[2:32]), "before the step"
    assert all(placed[-60:]) == (whose == "both") and any(placed[-60:]) == (whose == "both")


def test_what_is_held_up_has_no_place_for_that_time():
    """That its clock was set meanwhile cannot be told."""
    match, found = matcher(), []
    for time_ms in range(0, 1200, 30):
        held_ms = 300 if 600 < time_ms < 900 else 0
        track(match, time_ms, way_ms=2 + held_ms)
        show(match, time_ms, way_ms=5 + held_ms)
        found += match.take(0)
    assert [each.affine is None for each in found] == [600 < each.image < 900 for each in found]
    held = next(each for each in found if each.affine is None)
    assert held.late_ns == 300 * MS
    why = "the newest pose came 300 ms later than usual, the limit is 50 ms: its time may be wrong"
    assert held.tracking.reason == why


@pytest.mark.parametrize(("stamp_ms", "reason"), [(0, "no time stamp"), (90, "time stamps went back by 10 ms")])
def test_an_image_whose_stamp_says_nothing_has_no_place(stamp_ms, reason):
    match = matcher()
    track(match, *range(0, 300, 30))
    show(match, 100)
    match.image("x", stamp_ms and UTC + stamp_ms * MS, 120 * MS)
    show(match, 130)
    track(match, 300, 330)
    show(match, 310)
    first, bad, _, last = match.take(400 * MS)
    assert bad.tracking.reason == reason and bad.affine is None
    assert last.affine is not None
    assert (first.affine is None) == bool(stamp_ms), "which of them had the wrong time nobody knows"


def test_an_image_held_up_on_its_way_says_how_long():
    match = matcher()
    for n in range(20):
        show(match, 30 * n)
    show(match, 600, way_ms=705)
    assert match.take(0, at_once=True)[-1].late_ns == 700 * MS


def test_without_a_reference_the_tracker_is_it():
    match = MatchPoses(Chain("ProbeToTracker", IMAGE_TO_PROBE), Limits(50 * MS, 100 * MS, 0))
    match.pose("ProbeToTracker", pose(0, 0), UTC, 1)
    match.image(None, UTC, 2)
    found = only(match.take(0))
    np.testing.assert_allclose(found.affine[:3, 3], (LPS @ pose(0, 0) @ IMAGE_TO_PROBE)[:3, 3])


def test_a_calibration_that_cannot_be_is_refused():
    for numbers, words in [
        (np.arange(11.0), "11 numbers"),
        ([*np.eye(4).ravel()[:15], 2.0], "no map to mm"),
        ([np.inf, *np.eye(4).ravel()[1:]], "no map to mm"),
        (np.zeros(12), "no length"),
        ([1, 1, 0, 0, 1, 1.1, 0, 0, 0, 0, 1, 0], "same direction"),
    ]:
        with pytest.raises(ValueError, match=words):
            calibration(list(numbers))
    scaled = calibration(list(np.eye(4).ravel()), [0.2, 0.1])
    np.testing.assert_array_equal(scaled, np.diag([0.2, 0.1, 1, 1]))


def test_split_gives_back_the_plane():
    rigid, own = split(IMAGE_TO_PROBE)
    np.testing.assert_allclose((rigid @ own)[:, [0, 1, 3]], IMAGE_TO_PROBE[:, [0, 1, 3]], atol=1e-12)
    assert rigid_fault(rigid) == "" and rigid_fault(to_lps(rigid)) == ""


def test_poses_without_a_time_place_no_image_and_say_so():
    match = matcher()
    match.pose(CHAIN.probe, pose(0, 0), 0, 2 * MS)
    show(match, 5)
    found = only(match.take((10 + WAIT_MS) * MS))
    assert found.tracking.reason == "ProbeToTracker: its poses have no time stamps" and match.n_invalid_poses == 1


SPEED_MM_S = 100.0
# 50 ms of skew, and what is told apart by delays is known no better than the delays are: up to 30 ms each.
WORST_S = 0.15

steps = st.lists(
    st.tuples(
        st.sampled_from(["none"] * 20 + ["images", "poses", "both"]),  # whose clock is set
        st.floats(-3, 3),  # by how many seconds
        st.sampled_from([True] * 9 + [False]),  # whether the tools are seen
        st.sampled_from([True] * 9 + [False]),  # whether a pose is sent
        st.floats(0, 30),  # delays in ms, of pose and image
        st.floats(0, 30),
        st.sampled_from([0.0] * 30 + [400.0]),  # all is held up
    ),
    min_size=20,
    max_size=80,
)


@settings(deadline=None, max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(steps)
def test_whatever_clocks_networks_and_trackers_do_no_image_is_placed_where_the_probe_was_not(events):
    """A probe on a straight way at 100 mm/s: where an image is placed says which time its place is of."""
    match = MatchPoses(Chain("P", IMAGE_TO_PROBE), Limits(50 * MS, 100 * MS, WAIT_MS * MS))
    clocks, arrivals, n_placed = {"images": 0.0, "poses": 0.0}, [], 0
    last = {"images": 0.0, "poses": 0.0}
    for n, (whose, by_s, seen, sent, pose_ms, image_ms, held_ms) in enumerate(events):
        now_ms = 1000.0 + 20 * n
        for name in clocks:
            clocks[name] += 1000 * by_s if whose in (name, "both") else 0
        way = np.eye(4)
        way[:3, 3] = (SPEED_MM_S * now_ms / 1000, 5, 5)
        for name, what, delay_ms in [("poses", way if seen else np.eye(4), pose_ms), ("images", now_ms, image_ms)]:
            last[name] = max(last[name], now_ms + delay_ms + held_ms)  # a connection keeps the order
            if name == "images" or sent:
                arrivals.append((last[name], n, name, what, UTC + int((now_ms + clocks[name]) * MS)))
    for at_ms, _, name, what, stamp_ns in sorted(arrivals, key=lambda arrival: arrival[:2]):
        if name == "poses":
            match.pose("P", what, stamp_ns, int(at_ms * MS))
        else:
            match.image(what, stamp_ns, int(at_ms * MS))
        for found in match.take(int(at_ms * MS)):
            if found.affine is not None:
                n_placed += 1
                origin = np.linalg.inv(IMAGE_TO_PROBE) @ LPS @ found.affine  # of the probe, moved
                moved_mm = (LPS @ found.affine - IMAGE_TO_PROBE)[0, 3]
                assert abs(moved_mm / SPEED_MM_S - found.image / 1000) <= WORST_S
                assert np.allclose(origin[:3, :3], np.eye(3), atol=1e-9)
    if all(event[0] == "none" and event[2] and event[3] and not event[6] for event in events):
        assert n_placed >= len(events) // 2
