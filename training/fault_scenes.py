# SPDX-License-Identifier: Apache-2.0
"""Scenes to measure fault detection on, and others that a one-class score is fitted to."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import affine_transform, uniform_filter, zoom
from skimage.data import shepp_logan_phantom

from appliance.mri.phantom import cine_image
from training.simulate_faults import Acquired, Coils, Image, Scene, anatomy, ellipses

SIDE_PX, FLOOR = 96, 0.01  # of what a one-class score sees; what is darker than a hundredth looks alike
N_BODIES, BODY_PX = 100, 128  # each in several scenes: drawing one takes a second
TRAINED_SIDES = (96, 128, 160, 192)
TRAINED_COILS = (5, 8, 12)
HELD_OUT_MATRICES = ((144, 208), (224, 176), (240, 240), (176, 320))
HELD_OUT_COILS = (6, 10, 16)


def trained_scene(seed: int, number: int) -> Scene:
    """Return a scene of dead leaves in a wavy body, or of ellipses."""
    rng = np.random.default_rng([seed, number])
    n_y, n_x = rng.choice(TRAINED_SIDES, 2)
    truth = fit(rng, _body(seed, number % N_BODIES), (int(n_y), int(n_x)))
    coils = Coils.draw(rng, int(rng.choice(TRAINED_COILS)))
    acceleration = int(rng.integers(1, 4)) if coils.n > 5 else int(rng.integers(1, 3))
    return Scene(truth, coils, float(np.exp(rng.uniform(np.log(0.006), np.log(0.06)))), acceleration)


@lru_cache(maxsize=N_BODIES)
def _body(seed: int, number: int) -> Image:
    rng = np.random.default_rng([seed, number, 4])
    return ellipses(rng, BODY_PX) if number % 2 else anatomy(rng, BODY_PX)


def held_out_scene(seed: int, number: int) -> Scene:
    """Return a scene of a chest (the cine phantom) or a Shepp-Logan head, at settings that training does not have."""
    rng = np.random.default_rng([seed, 1_000_000 + number])
    truth = cine_image(int(rng.integers(150))) if number % 2 else shepp_logan_phantom().astype(np.float32)
    truth = fit(rng, truth, HELD_OUT_MATRICES[rng.integers(len(HELD_OUT_MATRICES))])
    coils = Coils.draw(rng, int(rng.choice(HELD_OUT_COILS)))
    acceleration = int(rng.integers(1, 4)) if coils.n > 6 else int(rng.integers(1, 3))
    return Scene(truth, coils, float(np.exp(rng.uniform(np.log(0.01), np.log(0.05)))), acceleration)


def fit(rng: np.random.Generator, image: Image, shape: tuple[int, int]) -> Image:
    """Return `image` as `placed`, its brighter tissue near 1."""
    fitted = placed(rng, image, shape)
    return np.asarray(fitted / max(float(np.percentile(fitted[fitted > 0.05], 95)), 1e-3), np.float32)


def placed(rng: np.random.Generator, image: Image, shape: tuple[int, int], down: float = 0.0) -> Image:
    """Return `image` turned, scaled a little, moved, and sampled to `shape`, `down` by pixels of it; air where it ends.

    Drawn from `rng`, so that the frames of one patient lie alike.
    """
    angle, scale = rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([scale * image.shape[0] / shape[0], scale * image.shape[1] / shape[1]])
    centre = (np.array(image.shape) - 1) / 2 + rng.uniform(-0.04, 0.04, 2) * image.shape
    offset = centre - matrix @ ((np.array(shape) - 1) / 2 + np.array([down, 0]))
    return np.asarray(affine_transform(image, matrix, offset, shape, order=1), np.float32)


def features_of(acquired: Acquired) -> Image:
    """Return what a one-class score sees, (1, SIDE_PX, SIDE_PX): the log image, its bright tissue at 0."""
    image = acquired.image
    small = zoom(
        uniform_filter(image, [max(1, n // SIDE_PX) for n in image.shape]), [SIDE_PX / n for n in image.shape], order=1
    )
    bright = max(float(np.percentile(small, 98)), 1e-30)
    return np.asarray(np.log(np.maximum(small, 0) / bright + FLOOR), np.float32)[None]
