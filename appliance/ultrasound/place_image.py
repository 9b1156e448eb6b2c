# SPDX-License-Identifier: Apache-2.0
"""From poses and a calibration to the place of an image, and to what is rigid in it.

Matrices are (4, 4) and map to mm. What comes from trackers is RAS (as on the OpenIGTLink wire), what goes on is LPS.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from appliance.frames import Affine
from appliance.igtl.rigid import RAS_TO_LPS, rigid_fault

_SMALLEST_SINE = 0.5  # between the rows and the columns of a picture: calibrations shear by a few degrees at most


def calibration(numbers: Sequence[float], pixel_mm: Sequence[float] = ()) -> Affine:
    """Return the map from pixel index (x, y, 0, 1) to the probe, RAS mm.

    Parameters
    ----------
    numbers
        12 or 16 numbers, row by row, as in PLUS's `Transform From="Image" To="Probe"`.
    pixel_mm
        Size of a pixel along x and y where `numbers` map mm in the image and not pixels.

    Raises
    ------
    ValueError
        Not so many numbers, not finite, a last row other than 0 0 0 1, or a picture that it squeezes to a line.
    """
    if len(numbers) not in (12, 16):
        raise ValueError(f"{len(numbers)} numbers; a calibration has 12, or 16 with its last row")
    matrix = np.eye(4)
    matrix.ravel()[: len(numbers)] = numbers
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"{list(numbers)!r} is no map to mm; 4 numbers a row, the last row 0 0 0 1")
    if pixel_mm:
        matrix = matrix @ np.diag([*pixel_mm, 1.0, 1.0])
    split(matrix)
    return matrix


def split(affine: Affine) -> tuple[Affine, Affine]:
    """Return (rigid, own) with rigid @ own = affine on the picture's plane.

    `rigid` is the pose of the picture: x along its rows, z across it, origin in the middle of its first pixel. `own`
    maps the pixel index to mm in the picture: sizes of a pixel, and the shear that calibrations may have.

    Raises
    ------
    ValueError
        Rows or columns have no length or lie in one direction.
    """
    rows, columns = affine[:3, 0], affine[:3, 1]
    x_mm, y_mm, across = np.linalg.norm(rows), np.linalg.norm(columns), np.cross(rows, columns)
    if not np.linalg.norm(across) > _SMALLEST_SINE * x_mm * y_mm > 0:
        raise ValueError("rows and columns of the picture have no length or the same direction")
    rigid = np.eye(4)
    rigid[:3, 0] = rows / x_mm
    rigid[:3, 2] = across / np.linalg.norm(across)
    rigid[:3, 1] = np.cross(rigid[:3, 2], rigid[:3, 0])
    rigid[:3, 3] = affine[:3, 3]
    own = np.eye(4)
    own[:2, :2] = rigid[:3, :2].T @ affine[:3, :2]
    own[2, 2] = (x_mm * y_mm) ** 0.5  # a picture has no thickness; displays want one
    return rigid, own


def sizes_only(own: Affine) -> Affine:
    """Return the size of a pixel alone, for a picture that has no place in the room."""
    return np.diag([*np.linalg.norm(own[:3, :3], axis=0), 1.0])


def pose_fault(matrix: Affine) -> str:
    """Return why a tracker's matrix is no pose, and "" where it is one.

    PLUS sends the identity for what it does not see; no sensor stays where the tracker's own origin is.
    """
    if np.array_equal(matrix, np.eye(4)):
        return "the identity, which stands for not seen"
    return rigid_fault(matrix)


def image_in_lps(ras: Affine) -> Affine:
    """Return a map from pixel index to RAS mm as one to LPS mm."""
    return np.asarray(RAS_TO_LPS @ ras)
