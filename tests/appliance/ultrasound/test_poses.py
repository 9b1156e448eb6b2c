# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from appliance.igtl.rigid import rigid_fault
from appliance.ultrasound.poses import (
    MOST_POSES,
    Clock,
    Track,
    interpolate,
    to_quaternion,
    to_rotation,
)

MS = 1_000_000
vectors = st.tuples(*[st.floats(-3, 3)] * 3).map(np.array)
places = st.tuples(*[st.floats(-500, 500)] * 3).map(np.array)


def pose(rotation_vector, place):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    matrix[:3, 3] = place
    return matrix


poses = st.builds(pose, vectors, places)


@settings(deadline=None)
@given(vectors)
def test_quaternions_are_those_of_scipy(vector):
    rotation = Rotation.from_rotvec(vector)
    found, (x, y, z, w) = to_quaternion(rotation.as_matrix()), rotation.as_quat()
    assert abs(found @ [w, x, y, z]) == pytest.approx(1, abs=1e-12), "the same but for its sign"
    np.testing.assert_allclose(to_rotation(found), rotation.as_matrix(), atol=1e-12)


@settings(deadline=None)
@given(poses, poses, st.floats(0, 1))
def test_the_rotation_is_scipys_slerp_and_the_translation_straight(before, after, share):
    between = Rotation.from_matrix(before[:3, :3]).inv() * Rotation.from_matrix(after[:3, :3])
    found = interpolate(before, after, share)
    if between.magnitude() < np.pi - 1e-4:  # half a turn has two ways round
        ends = Rotation.from_matrix(np.stack([before[:3, :3], after[:3, :3]]))
        np.testing.assert_allclose(found[:3, :3], Slerp([0, 1], ends)(share).as_matrix(), atol=1e-7)
    np.testing.assert_allclose(found[:3, 3], before[:3, 3] + share * (after - before)[:3, 3], atol=1e-9)
    assert rigid_fault(found) == ""


@settings(deadline=None)
@given(poses, st.floats(0, 1))
def test_between_equal_poses_nothing_moves(matrix, share):
    np.testing.assert_allclose(interpolate(matrix, matrix, share), matrix, atol=1e-9)


def test_the_ends_are_the_given_matrices_and_nothing_lies_beyond():
    a, b = pose([0.1, 0, 0], [1, 2, 3]), pose([0, 0.2, 0], [4, 5, 6])
    assert interpolate(a, b, 0) is a and interpolate(a, b, 1) is b
    for share in (-1e-9, 1.0001, float("nan")):
        with pytest.raises(ValueError, match="nothing is extrapolated"):
            interpolate(a, b, share)


def test_a_pose_rounded_as_plus_writes_it_is_interpolated_to_a_rotation():
    a, b = (np.round(pose(v, [0, 0, 0]), 6) for v in ([0.3, 1.1, -0.4], [0.35, 1.05, -0.3]))
    found = interpolate(a, b, 0.5)[:3, :3]
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)


def track(*times_ms, name="ProbeToTracker"):
    found = Track(name)
    for time_ms in times_ms:
        found.add(time_ms * MS, pose([0, 0, 0.001 * time_ms], [time_ms, 0, 0]))
    return found


@settings(deadline=None)
@given(st.integers(0, 200))
def test_a_moving_tool_is_where_it_was_at_that_time(time_ms):
    found = track(*range(0, 201, 20)).at(time_ms * MS, 100 * MS)
    np.testing.assert_allclose(found.matrix, pose([0, 0, 0.001 * time_ms], [time_ms, 0, 0]), atol=1e-9)


def test_no_pose_is_made_up():
    tool = track(100, 120, 300)
    assert tool.at(110 * MS, 50 * MS).matrix is not None
    refused = {
        90: "ProbeToTracker: no pose before the image",
        200: "ProbeToTracker: 180 ms without a pose, the limit is 50 ms",
        310: "ProbeToTracker: no pose since 10 ms before the image",
        9000: "ProbeToTracker: no pose since 8 s before the image",
    }
    for time_ms, reason in refused.items():
        found = tool.at(time_ms * MS, 50 * MS)
        assert found.matrix is None and found.reason == reason
    assert tool.at(310 * MS, 50 * MS).later, "the next pose may be in time"
    assert not tool.at(200 * MS, 50 * MS).later
    assert Track("x").at(5, 50).reason == "x: no pose has come" and Track("x").at(5, 50).later


def test_nobody_interpolates_across_a_pose_that_is_not_valid():
    tool = track(0, 10)
    tool.add(20 * MS, None, "it holds NaN")
    tool.add(30 * MS, pose([0, 0, 0], [0, 0, 0]))
    tool.add(40 * MS, pose([0, 0, 0], [0, 0, 0]))
    for time_ms in (15, 20, 25):
        found = tool.at(time_ms * MS, 100 * MS)
        assert found.matrix is None and found.reason == "ProbeToTracker: it holds NaN"
    assert tool.at(35 * MS, 100 * MS).matrix is not None


def test_poses_out_of_order_are_not_taken():
    tool = track(0, 20)
    assert not tool.add(20 * MS, np.eye(4)) and not tool.add(10 * MS, np.eye(4))
    assert tool.at(10 * MS, 50 * MS).matrix[0, 3] == pytest.approx(10)


def test_a_tool_that_moves_for_hours_takes_no_more_memory():
    tool = track(*range(5 * MOST_POSES))
    assert len(tool._times) == len(tool._poses) <= 2 * MOST_POSES
    newest = 5 * MOST_POSES - 1
    assert tool.at((newest - MOST_POSES + 2) * MS, MS).matrix is not None


HOUR = 3_600_000_000_000


@settings(deadline=None)
@given(
    st.integers(-HOUR, HOUR).filter(lambda offset: abs(offset) < HOUR),
    st.lists(st.floats(0, 30), min_size=40, max_size=300),
    st.floats(1, 20),
)
def test_the_offset_is_between_the_shortest_way_and_the_usual_one(offset_ns, delays_ms, shortest_ms):
    clock, now_ns = Clock(), 10 * HOUR
    delays_ns = [int((shortest_ms + delay) * MS) for delay in delays_ms]
    for delay_ns in delays_ns:
        now_ns += 33 * MS
        assert clock.add(now_ns - delay_ns - offset_ns, now_ns) == ""
    assert min(delays_ns) <= clock.offset_ns - offset_ns <= np.median(delays_ns) + 1


def test_single_wrong_stamps_do_not_move_the_offset():
    clock = Clock()
    for n in range(1, 300):
        wrong_ns = -800 * MS if n % 100 == 50 else 0
        clock.add(n * 33 * MS + HOUR - wrong_ns, n * 33 * MS + 2 * MS)
    assert clock.offset_ns == 2 * MS - HOUR
    assert clock.late_ns(300 * 33 * MS + HOUR, 300 * 33 * MS + 252 * MS) == 250 * MS


@pytest.mark.parametrize(("jump_s", "words"), [(3600, r"\+3600.0 s"), (-3600, r"-3600.0 s"), (2, r"\+2.0 s")])
def test_a_clock_that_jumps_is_told_and_measured_anew(jump_s, words):
    clock = Clock()
    for n in range(100):
        assert clock.add(2 * HOUR + n * 10 * MS, HOUR + n * 10 * MS + MS) == ""
    told = [clock.add(2 * HOUR + jump_s * 10**9 + n * 10 * MS, HOUR + n * 10 * MS + MS) for n in range(100, 200)]
    assert re.search(f"time stamps jumped by {words}", told[0])
    assert set(told[1:]) == {""} and clock.n_jumps == 1
    assert clock.offset_ns == MS - HOUR - jump_s * 10**9


def test_a_message_without_a_stamp_says_nothing_of_the_clock():
    clock = Clock()
    assert clock.add(0, 5) == "no time stamp" and clock.offset_ns is None
    assert clock.late_ns(0, 5) == 0
