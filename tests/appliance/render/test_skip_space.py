# SPDX-License-Identifier: Apache-2.0
"""Block ranges and distances against numpy and scipy; what is told to be empty is empty."""

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt

from appliance.render.skip_space import (
    BLOCK,
    CELL,
    FARTHEST,
    block_ranges,
    distance_to_matter,
    n_blocks,
    where_rays_meet_matter,
)


@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 9, 13), (8, 17, 6), (33, 2, 41)])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_a_block_holds_the_corners_of_its_cells(shape, dtype):
    info = np.iinfo(dtype)
    array = np.random.default_rng(0).integers(info.min, info.max, shape, endpoint=True).astype(dtype)
    lowest = np.empty(n_blocks(shape), dtype)
    highest = np.empty_like(lowest)
    block_ranges(array, lowest, highest)
    for index in np.ndindex(lowest.shape):
        part = array[tuple(slice(i * BLOCK, i * BLOCK + BLOCK + 1) for i in index)]
        assert (lowest[index], highest[index]) == (part.min(), part.max())


def test_distance_is_the_chessboards():
    seen = np.random.default_rng(1).random((23, 31, 40)) > 0.9995
    expected = np.minimum(distance_transform_cdt(~seen, "chessboard"), FARTHEST)
    assert expected.max() > 5
    assert (distance_to_matter(seen) == expected).all()


def test_where_nothing_is_seen_everything_is_far():
    assert (distance_to_matter(np.zeros((3, 4, 5), bool)) == FARTHEST).all()


def test_every_sample_in_a_seen_block_is_between_enter_and_leave():
    random = np.random.default_rng(5)
    seen = random.random((6, 7, 8)) > 0.95
    distance, size = distance_to_matter(seen), (50, 61)
    for _ in range(20):
        rays = random.normal(size=(4, 3)).astype(np.float32)
        rays[0] = np.array([16, 14, 12]) - rays[1] * 30 - rays[2] * 25
        enter, leave = where_rays_meet_matter(distance, rays, size)
        row, column, k = np.meshgrid(*(np.arange(n) for n in size), np.arange(-40, 41), indexing="ij")
        at = rays[0] + column[..., None] * rays[1] + row[..., None] * rays[2] + k[..., None] * rays[3]
        block = np.floor(at / BLOCK).astype(int)[..., ::-1]
        there = ((block >= 0) & (block < seen.shape)).all(-1)
        matter = there & seen[tuple(np.clip(block, 0, np.array(seen.shape) - 1).transpose(3, 0, 1, 2))]
        cell = row // CELL, column // CELL
        assert (~matter | ((k >= enter[cell]) & (k < leave[cell]))).all()
