# SPDX-License-Identifier: Apache-2.0
"""What counts as a rigid transform, against scipy's rotations and real poses of a tracker."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from appliance.igtl.rigid import rigid_fault, to_lps, to_ras

TRACKED = Path(__file__).parents[3].parent / "shared" / "data" / "us_tracked" / "TestImages"


def pose(quaternion=(0.1, -0.2, 0.3, 0.9), translation=(10.0, -20.0, 300.0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    matrix[:3, 3] = translation
    return matrix


unit = st.floats(-1, 1, allow_subnormal=False)


@settings(max_examples=200, deadline=None)
@given(st.tuples(unit, unit, unit, unit).filter(lambda q: np.linalg.norm(q) > 0.01), st.floats(-1e5, 1e5))
def test_every_rotation_passes_also_as_float32(quaternion, distance_mm):
    matrix = pose(quaternion, (distance_mm, 0, -distance_mm))
    assert rigid_fault(matrix) == ""
    assert rigid_fault(matrix.astype(np.float32)) == ""
    np.testing.assert_allclose(to_ras(to_lps(matrix)), matrix)
    assert rigid_fault(to_lps(matrix)) == ""


def test_real_poses_of_a_tracker_pass():
    path = TRACKED / "SpinePhantomFreehand.igs.mha"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    head = path.read_bytes()[:200_000].split(b"ElementDataFile")[0].decode()
    lines = re.findall(r"(?:Probe|Reference|Stylus)ToTrackerTransform = (.*)", head)
    assert len(lines) == 63
    assert {rigid_fault(np.array(line.split(), float).reshape(4, 4)) for line in lines} == {""}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m[:3], r"shape (3, 4), not (4, 4)"),
        (lambda m: np.where(np.eye(4) == 1, np.nan, m), "it holds NaN or infinite numbers"),
        (lambda m: m + np.eye(4)[:, [1, 2, 3, 0]] * np.inf, "it holds NaN or infinite numbers"),
        (lambda m: np.vstack([m[:3], [[0, 0, 1, 1]]]), "its last row is [0.0, 0.0, 1.0, 1.0], not 0 0 0 1"),
        (lambda m: m + np.outer([1e300, 0, 0, 0], [0, 0, 0, 1]), "it leads 1e+300 mm away"),
        (lambda m: m @ np.diag([1, 1, 1.01, 1]), "scaled: its axes are 1, 1 and 1.01 long"),
        (lambda m: m @ np.diag([0, 0, 0, 1]), "scaled: its axes are 0, 0 and 0 long"),
        (lambda m: m @ np.diag([1, 1, -1, 1]), "mirrored: its determinant is negative"),
        (
            lambda m: m @ [[1, np.sin(0.1), 0, 0], [0, np.cos(0.1), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            "sheared: cosines between its axes are 0.0998,",
        ),
    ],
)
def test_what_is_no_rigid_transform_says_why(change, text):
    with np.errstate(invalid="ignore"):
        assert rigid_fault(change(pose())).startswith(text)


def test_a_point_means_the_same_in_both_frames():
    ras, point_lps = pose(), np.array([3.0, 4.0, 5.0, 1.0])
    flip = np.array([-1, -1, 1, 1])
    np.testing.assert_allclose(to_lps(ras) @ point_lps, flip * (ras @ (flip * point_lps)))
