# SPDX-License-Identifier: Apache-2.0
"""Whether a pose from the network is one, and the way from RAS on the wire to LPS inside."""

from __future__ import annotations

import numpy as np

from appliance.frames import Affine

# Largest deviation of an axis' squared length from 1, or of the cosine between two from 0. Half a thousandth in
# length is 0.1 mm at 200 mm; poses written with six digits (PLUS) deviate by 2e-6, float32 on the wire by 2e-7.
TOLERANCE = 1e-3
FARTHEST_MM = 1e6  # a kilometre: no room is so large
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # and back


def rigid_fault(matrix: Affine) -> str:
    """Return why the (4, 4) `matrix` is no rigid transform, and "" where it is one (rotation and translation)."""
    matrix = np.asarray(matrix)
    if matrix.shape != (4, 4):
        return f"shape {matrix.shape}, not (4, 4)"
    if not np.isfinite(matrix).all():
        return "it holds NaN or infinite numbers"
    if not np.array_equal(matrix[3], (0, 0, 0, 1)):
        return f"its last row is {matrix[3].tolist()}, not 0 0 0 1"
    if (distance := np.abs(matrix[:3, 3]).max()) > FARTHEST_MM:
        return f"it leads {distance:.3g} mm away"
    rotation = matrix[:3, :3].astype(np.float64)
    gram = rotation.T @ rotation
    lengths = np.sqrt(np.diag(gram))
    if np.abs(np.diag(gram) - 1).max() > TOLERANCE:
        return "scaled: its axes are {:.4g}, {:.4g} and {:.4g} long".format(*lengths)
    cosines = gram[np.triu_indices(3, 1)]
    if np.abs(cosines).max() > TOLERANCE:
        return "sheared: cosines between its axes are {:.3g}, {:.3g} and {:.3g}".format(*cosines)
    if np.linalg.det(rotation) < 0:
        return "mirrored: its determinant is negative"
    return ""


def to_lps(matrix: Affine) -> Affine:
    """Return a transform between two RAS spaces (as on the wire) as the same one between two LPS spaces, mm."""
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


def to_ras(matrix: Affine) -> Affine:
    """Return a transform between two LPS spaces as the same one between two RAS spaces, mm."""
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS
