# SPDX-License-Identifier: Apache-2.0
"""Volumes whose pictures are known, and a plain way to make a whole picture."""

import numpy as np

from appliance.imaging.volume_message import Volume
from appliance.render.draw import SHARP, draw, prepare
from appliance.render.view import read_view

SHEARED = np.array([[0.7, 0.2, 0.3, -31.0], [-0.1, 0.9, -0.4, 12.0], [0.15, 0.1, 1.6, 700.0], [0, 0, 0, 1]])


def volume(array, affine=None, modality="CT", value_range=(0, 1000), **more):
    affine = np.eye(4) if affine is None else affine
    return Volume(
        pipeline="p", scan_id="s", modality=modality, array=np.ascontiguousarray(array), affine=affine,
        value_range=value_range, acquired_ns=1, received_ns=1, version=1, **more,
    )  # fmt: skip


def centres_mm(shape, affine):
    """LPS of every voxel, (z, y, x, 3)."""
    z, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    return np.stack([x, y, z], -1) @ affine[:3, :3].T + affine[:3, 3]


def picture(of, quality=SHARP, **said):
    """The whole picture of a volume."""
    work = draw(prepare(of), read_view(said), quality)
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def marked(affine, at_mm, shape=(40, 48, 56), value=1000):
    """Air with one small ball at a place in LPS."""
    distance = np.linalg.norm(centres_mm(shape, affine) - at_mm, axis=-1)
    return volume(np.where(distance < 3, value, -1000).astype(np.int16), affine)
