# SPDX-License-Identifier: Apache-2.0
"""Where an MRD image lies in the patient.

MRD's `position` is the centre of the field of view (LPS, mm), unlike DICOM's ImagePositionPatient. Our transforms put
the centre of k-space, and so the centre of the field of view, at index ``n // 2`` of each axis; hence voxel
``(nx // 2, ny // 2, 0)`` lies at `position`, for odd and even sizes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from appliance.frames import Affine

_UNIT_TOLERANCE = 1e-3  # directions come as float32; scanners write them with five digits or more


@dataclass(frozen=True, eq=False)
class Placement:
    """An image's place as MRD writes it: centre and unit directions (LPS), sizes in mm."""

    position: NDArray[np.float64]
    read_dir: NDArray[np.float64]
    phase_dir: NDArray[np.float64]
    slice_dir: NDArray[np.float64]
    fov_mm: tuple[float, float, float]


def directions_known(read_dir: ArrayLike, phase_dir: ArrayLike) -> bool:
    """Whether read and phase directions are orthogonal unit vectors, as the standard wants them."""
    basis = np.array([read_dir, phase_dir], np.float64)
    return bool(np.allclose(basis @ basis.T, np.eye(2), atol=_UNIT_TOLERANCE))


def image_affine(
    position: ArrayLike,
    read_dir: ArrayLike,
    phase_dir: ArrayLike,
    slice_dir: ArrayLike,
    fov_mm: tuple[float, float, float],
    matrix: tuple[int, int, int],
) -> Affine:
    """Return the affine of an image with rows along `read_dir` and columns along `phase_dir`.

    (4, 4) float64, voxel index (x, y, z, 1) to voxel centre in LPS mm. A `slice_dir` that is not perpendicular to the
    other two (not filled in, say) is replaced by ``read_dir × phase_dir``.
    """
    read, phase, normal = (np.array(d, np.float64) for d in (read_dir, phase_dir, slice_dir))
    cross = np.cross(read, phase)
    if not abs(abs(normal @ cross) - 1) <= _UNIT_TOLERANCE:
        normal = cross
    spacing = np.array(fov_mm) / np.array(matrix)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([read, phase, normal], axis=1) * spacing
    affine[:3, 3] = np.array(position, np.float64) - affine[:3, :3] @ (matrix[0] // 2, matrix[1] // 2, 0)
    return affine


def placement(affine: Affine, shape: tuple[int, int]) -> Placement:
    """Return the place of an image of `shape` (y, x), one slice; the reverse of `image_affine`."""
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    read, phase, normal = (affine[:3, :3] / sizes).T
    centre = affine[:3, :3] @ (shape[1] // 2, shape[0] // 2, 0) + affine[:3, 3]
    return Placement(centre, read, phase, normal, (sizes[0] * shape[1], sizes[1] * shape[0], float(sizes[2])))
