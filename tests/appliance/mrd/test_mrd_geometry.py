# SPDX-License-Identifier: Apache-2.0
"""Affines against one worked out by hand, and against the properties that any must have."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from appliance.mrd.geometry import directions_known, image_affine, placement


def test_an_axial_image_worked_out_by_hand() -> None:
    """4 × 3 voxels of 2 × 5 mm: index (2, 1) is the centre (10, 20, 30), so index (0, 0) is 4 mm and 5 mm before it."""
    affine = image_affine((10, 20, 30), (1, 0, 0), (0, 1, 0), (0, 0, 1), (8, 15, 6), (4, 3, 1))
    assert_allclose(affine, [[2, 0, 0, 6], [0, 5, 0, 15], [0, 0, 6, 30], [0, 0, 0, 1]])


def test_a_coronal_image_worked_out_by_hand() -> None:
    """Rows to the left, columns to the feet: x is L, y is -S, and the normal L × (-S) is +P … = (0, 1, 0)."""
    affine = image_affine((0, 50, 0), (1, 0, 0), (0, 0, -1), (0, 0, 0), (300, 300, 8), (256, 256, 1))
    assert_allclose(affine @ (128, 128, 0, 1), (0, 50, 0, 1))
    assert_allclose(affine @ (0, 0, 0, 1), (-150, 50, 150, 1))  # top left of the picture: right, head
    assert_allclose(affine[:3, 2], (0, 8, 0))


@pytest.mark.parametrize(("n_x", "n_y"), [(5, 5), (4, 4), (5, 4), (4, 7)])
def test_position_is_where_the_centre_of_the_transform_falls(n_x: int, n_y: int) -> None:
    """A point at the centre of the field of view lands in voxel n // 2 of a centred transform."""
    kspace = np.ones((n_y, n_x))
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace)))
    y, x = np.unravel_index(np.abs(image).argmax(), image.shape)
    affine = image_affine((1, 2, 3), (0, 1, 0), (0, 0, 1), (1, 0, 0), (100, 120, 5), (n_x, n_y, 1))
    assert_allclose(affine @ (x, y, 0, 1), (1, 2, 3, 1), atol=1e-12)


def test_an_oblique_image_keeps_lengths_angles_and_comes_back() -> None:
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))
    read, phase, normal = rotation.T * np.linalg.det(rotation)
    affine = image_affine((7, -8, 9), read, phase, normal, (220, 200, 4), (110, 101, 1))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    assert_allclose(spacing, (2, 200 / 101, 4))
    back = placement(affine, (101, 110))
    assert_allclose(back.position, (7, -8, 9), atol=1e-12)
    assert_allclose([back.read_dir, back.phase_dir, back.slice_dir], [read, phase, normal], atol=1e-12)
    assert_allclose(back.fov_mm, (220, 200, 4))


def test_a_left_handed_slice_direction_is_kept_and_a_wrong_one_replaced() -> None:
    left = image_affine((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, -1), (1, 1, 1), (1, 1, 1))
    assert left[2, 2] == -1
    wrong = image_affine((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1), (1, 1, 1))
    assert_allclose(wrong[:3, 2], (0, 0, 1))
    nan = image_affine((0, 0, 0), (1, 0, 0), (0, 1, 0), (np.nan,) * 3, (1, 1, 1), (1, 1, 1))
    assert_allclose(nan[:3, 2], (0, 0, 1))


@pytest.mark.parametrize(
    ("read", "phase", "known"),
    [
        ((1, 0, 0), (0, 1, 0), True),
        ((0.70711, 0.70711, 0), (0, 0, 1), True),
        ((0, 0, 0), (0, 0, 0), False),
        ((1, 0, 0), (1, 0, 0), False),
        ((2, 0, 0), (0, 1, 0), False),
        ((np.nan, 0, 0), (0, 1, 0), False),
    ],
)
def test_directions_are_known_only_as_orthogonal_unit_vectors(read: tuple, phase: tuple, known: bool) -> None:
    assert directions_known(read, phase) is known
