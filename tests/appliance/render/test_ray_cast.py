# SPDX-License-Identifier: Apache-2.0
"""Rays against projections known in closed form, and against a slow renderer that shares no code."""

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from volumes import SHEARED, centres_mm, volume

from appliance.render import ray_cast
from appliance.render.draw import prepare
from appliance.render.view import Pane, read_view
from appliance.render.view import _rotation as rotation_matrix

SIZE = (64, 64)
TURNS = [(0, 0, 0, 1), (0.3, -0.2, 0.5, 0.7), (0.9, 0.1, 0.2, -0.4), (0, 0.7071, 0, 0.7071)]


def pane(turn, centre, pixel_mm, kind="volume"):
    turned = rotation_matrix(read_view({"rotation": list(turn)}).rotation)
    axes = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ turned.T
    return Pane("p", kind, 0, 0, SIZE[1], SIZE[0], axes, np.asarray(centre, float), pixel_mm)


def middle(array, affine):
    return affine[:3, :3] @ ((np.array(array.shape[::-1]) - 1) / 2) + affine[:3, 3]


def ray_points(rays, k):
    """Voxel (x, y, z) of every pixel's sample k: (rows, columns, 3)."""
    row, column = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float64)
    return rays[0] + column[..., None] * rays[1] + row[..., None] * rays[2] + k * rays[3].astype(np.float64)


def colours(array, affine, rays, to_view, table, low, scale, skip=True, weak=0.0):
    scene = prepare(volume(array, affine))
    threshold = low + np.argmax(table[:, 3] > 0) / scale - 1 / scale
    space = scene.space("x", lambda: scene.highest.astype(float) > threshold, rays, SIZE)
    if not skip:
        space = space._replace(
            distance=np.zeros_like(space.distance),
            enter=np.full_like(space.enter, -(1 << 30)),
            leave=np.full_like(space.leave, 1 << 30),
        )
    out = np.full((*SIZE, 3), 77, np.uint8)
    ray_cast.cast_colours(space, rays, to_view, table, low, scale, weak, (0, SIZE[0]), out)
    return out


UNLIT = np.zeros((3, 3), np.float32)  # without a gradient a sample is fully lit: colour + specular


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("affine", [np.diag([1, 1, 1, 1.0]), SHEARED], ids=["cubes", "sheared"])
def test_a_gaussian_has_the_optical_depth_of_its_integral(turn, affine):
    shape, sigma_mm, depth_per_value = (44, 56, 60), 5.0, 1e-4
    array = np.zeros(shape, np.int16)
    centre = middle(array, affine)
    r2 = ((centres_mm(shape, affine) - centre) ** 2).sum(-1)
    array[:] = np.round(3000 * np.exp(-r2 / (2 * sigma_mm**2)))
    view = pane(turn, centre, 0.5)
    step_mm = 0.5
    values = np.arange(3001, dtype=np.float64)
    table = np.full((3001, 4), 0.5, np.float32)
    table[:, 3] = 1 - np.exp(-depth_per_value * values * step_mm)
    seen = colours(array, affine, view.rays(affine, step_mm, 1), UNLIT, table, 0.0, 1.0)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    d2 = ((row - 31.5) ** 2 + (column - 31.5) ** 2) * 0.5**2
    depth = depth_per_value * 3000 * sigma_mm * np.sqrt(2 * np.pi) * np.exp(-d2 / (2 * sigma_mm**2))
    expected = 255 * 0.75 * (1 - np.exp(-depth))
    inside = d2 < (2.5 * sigma_mm) ** 2  # beyond, the volume's own border cuts the Gaussian
    assert np.abs(seen[..., 0] - expected)[inside].max() < 3.0  # trilinear voxels of 1.7 mm widen it by 1 %


@pytest.mark.parametrize("turn", TURNS)
def test_a_ball_is_as_opaque_as_its_chords(turn):
    shape, radius, step_mm, per_step = (50, 50, 50), 18.0, 0.25, 0.02
    centre = np.full(3, 24.5)
    distance = np.linalg.norm(centres_mm(shape, np.eye(4)) - centre, axis=-1)
    array = np.round((radius - distance) * 100).astype(np.int16)
    table = np.array([[0.5, 0.5, 0.5, 0], [0.5, 0.5, 0.5, per_step]], np.float32)
    view = pane(turn, centre, 0.8)
    seen = colours(array, np.eye(4), view.rays(np.eye(4), step_mm, 1), UNLIT, table, -1.0, 1.0)
    row, column = np.mgrid[: SIZE[0], : SIZE[1]]
    d2 = ((row - 31.5) ** 2 + (column - 31.5) ** 2) * 0.8**2
    chord = 2 * np.sqrt(np.maximum(radius**2 - d2, 0))
    expected = 255 * 0.75 * (1 - (1 - per_step) ** (chord / step_mm))
    one_step = 255 * 0.75 * per_step
    assert np.abs(seen[..., 0] - expected)[d2 < 17**2].max() < 1.5 * one_step + 1  # an end may fall on either side
    assert (seen[d2 > 19**2] == 0).all()


@pytest.mark.parametrize("turn", TURNS[:3])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_colours_are_those_of_a_slow_renderer(turn, dtype):
    array = np.random.default_rng(3).integers(0, 250, (17, 21, 19)).astype(dtype)
    array[:6], array[:, :5] = 0, 0  # something to skip
    view = pane(turn, middle(array, SHEARED), 0.5)
    rays, to_view = view.rays(SHEARED, 0.6, 1), view.to_view(SHEARED)
    table = np.zeros((251, 4), np.float32)
    table[:, :3] = np.random.default_rng(4).random((251, 3))
    table[120:, 3] = np.linspace(0, 0.4, 131)
    seen = colours(array, SHEARED, rays, to_view, table, 0.0, 1.0)
    expected = slow_renderer(array.astype(float), rays, to_view, table)
    wrong = np.abs(seen - expected).max(-1)
    assert seen.max() > 100
    assert (wrong > 1.0).mean() < 0.005  # a value on the edge of two entries may go to either in float32
    assert wrong.max() < 40


def slow_renderer(array, rays, to_view, table):
    gradients = [2 * g for g in np.gradient(array)][::-1]  # x, y, z
    colour, left = np.zeros((*SIZE, 3)), np.ones(SIZE)
    for k in range(-120, 121):
        at = ray_points(rays, k)
        inside = ((at >= 0) & (at <= np.array(array.shape[::-1]) - 1)).all(-1) & (left >= 0.01)
        place = at[..., ::-1].transpose(2, 0, 1)
        value = map_coordinates(array, place, order=1, mode="nearest")
        g = np.stack([map_coordinates(each, place, order=1, mode="nearest") for each in gradients], -1) @ to_view.T
        length2 = (g**2).sum(-1)
        cosine2 = np.where(length2 > 1e-12, g[..., 2] ** 2 / np.maximum(length2, 1e-12), 1)
        entry = table[np.clip(value, 0, len(table) - 1).astype(int)]
        weight = np.where(inside, left * entry[..., 3], 0)
        lit = 0.15 + 0.85 * np.sqrt(cosine2)
        colour += weight[..., None] * (entry[..., :3] * lit[..., None] + 0.25 * cosine2[..., None] ** 8)
        left -= weight
    return np.minimum(colour, 1) * 255


@pytest.mark.parametrize("turn", TURNS)
def test_skipping_changes_no_pixel(turn):
    r2 = ((centres_mm((40, 48, 44), np.eye(4)) - (20, 22, 19)) ** 2).sum(-1)
    array = np.where((r2 < 120) | ((r2 > 200) & (r2 < 260)), 800, -1000).astype(np.int16)
    view = pane(turn, (21.5, 23.5, 19.5), 1.0)
    table = np.zeros((100, 4), np.float32)
    table[:, 0], table[1:, 3] = 1, 0.1
    arguments = (array, np.eye(4), view.rays(np.eye(4), 0.5, 1), view.to_view(np.eye(4)), table, 0.0, 0.1)
    skipped, all_of_it = colours(*arguments), colours(*arguments, skip=False)
    assert skipped.max() > 50
    assert np.abs(skipped.astype(int) - all_of_it).max() <= 1  # positions are added up over other stretches


def test_weakly_seen_samples_may_be_lit_by_their_cell_alone():
    r = np.sqrt(((centres_mm((40, 48, 44), np.eye(4)) - (20, 22, 19)) ** 2).sum(-1))
    noise = np.random.default_rng(0).normal(size=r.shape, scale=10)
    array = np.clip(500 + 400 * np.cos(r / 3) + noise, 0, 1000).astype(np.int16)
    view = pane(TURNS[1], (21.5, 23.5, 19.5), 1.0)
    table = np.zeros((1001, 4), np.float32)
    table[:, :3], table[:, 3] = 0.7, np.linspace(0, 0.3, 1001)
    arguments = (array, np.eye(4), view.rays(np.eye(4), 1.0, 1), view.to_view(np.eye(4)), table, 0.0, 1.0)
    exact, weak = colours(*arguments).astype(float), colours(*arguments, weak=0.02)
    error = ((exact - weak)[exact > 0] ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 40


@pytest.mark.parametrize("axis", range(3))
def test_the_highest_along_an_axis_is_numpys(axis):
    array = np.random.default_rng(axis).integers(-500, 3000, (64, 64, 64)).astype(np.int16)
    turn = [(0, 0, 0, 1), (0.7071068, 0, 0, 0.7071068), (0, 0, 0.7071068, 0.7071068)][axis]
    view = pane(turn, np.full(3, 31.5) + np.eye(3)[[1, 2, 0][axis]] / 2, 1.0, "mip")  # samples on voxel centres
    # right, down, ahead of these three views in LPS: x -z y; x y z; y -z -x
    expected = [array.max(1)[::-1], array.max(0), array.max(2)[::-1]][axis]
    assert np.abs(highest(array, np.eye(4), view.rays(np.eye(4), 1.0, 1)) - expected).max() < 0.1


@pytest.mark.parametrize("turn", TURNS)
def test_the_highest_on_oblique_rays_is_that_of_all_samples(turn):
    array = np.random.default_rng(1).integers(-500, 3000, (20, 30, 25)).astype(np.int16)
    rays = pane(turn, middle(array, SHEARED), 0.4, "mip").rays(SHEARED, 0.5, 1)
    expected = np.full(SIZE, -100.0)
    for k in range(-150, 151):
        at = ray_points(rays, k)
        inside = ((at >= 0) & (at <= np.array(array.shape[::-1]) - 1)).all(-1)
        value = map_coordinates(array.astype(float), at[..., ::-1].transpose(2, 0, 1), order=1, mode="nearest")
        expected = np.where(inside, np.maximum(expected, value), expected)
    wrong = np.abs(highest(array, SHEARED, rays) - expected) > 1.0  # of 3,500: float32 positions
    assert wrong.mean() < 0.002  # a sample on the outermost plane may be in or out


def highest(array, affine, rays):
    scene = prepare(volume(array, affine))
    values = np.empty(SIZE, np.float32)
    space = scene.space("x", lambda: scene.highest > -100, rays, SIZE)
    ray_cast.cast_highest(space, rays, -100.0, (0, SIZE[0]), values)
    return values


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_a_cut_is_what_scipy_interpolates(turn, dtype):
    array = np.random.default_rng(2).integers(0, 250, (9, 14, 11)).astype(dtype)
    rays = pane(turn, middle(array, SHEARED), 0.3, "slice").rays(SHEARED, 1.0, 1)
    values = np.empty(SIZE, np.float32)
    ray_cast.cut(array, rays, -7.0, (0, SIZE[0]), values)
    at = ray_points(rays, 0)
    inside = ((at >= -0.5) & (at <= np.array(array.shape[::-1]) - 0.5)).all(-1)
    expected = map_coordinates(array.astype(float), at[..., ::-1].transpose(2, 0, 1), order=1, mode="nearest")
    assert 0.05 < inside.mean() < 0.95
    assert np.abs(values - expected)[inside].max() < 0.02
    assert (values[~inside] == -7.0).all()
