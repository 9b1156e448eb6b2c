# SPDX-License-Identifier: Apache-2.0
"""Scenes to train fault detection on, and others to measure it on: other anatomy, matrices, coils, acceleration."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from skimage.data import shepp_logan_phantom

from appliance.mri.fault_features import fault_features
from appliance.mri.phantom import cine_image
from appliance.mri.rules import NETWORK_CLASSES as CLASSES
from training.simulate_faults import Acquired, Coils, Image, Scene, acquire, anatomy, ellipses

CLEAN = (
    "",
    "",
    "",
    "",
    "low_snr",
    "noisy_coil",
    "spike",
    "zipper",
)  # what the network must not take for one of its classes
CLEAN_PART = 0.35

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
    angle, zoom = rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([zoom * image.shape[0] / shape[0], zoom * image.shape[1] / shape[1]])
    centre = (np.array(image.shape) - 1) / 2 + rng.uniform(-0.04, 0.04, 2) * image.shape
    offset = centre - matrix @ ((np.array(shape) - 1) / 2 + np.array([down, 0]))
    return np.asarray(affine_transform(image, matrix, offset, shape, order=1), np.float32)


def features_of(acquired: Acquired) -> NDArray[np.float32]:
    """Return what the network sees, (channel, y, x)."""
    return np.asarray(fault_features(acquired.image, acquired.kspace)[0])


def samples(scene: Scene, rng: np.random.Generator, n: int) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Return features (n, channel, y, x) of frames of one scene, and labels (n, class): clean, or one fault."""
    features, labels = [], np.zeros((n, len(CLASSES)), np.float32)
    for i in range(n):
        fault = str(rng.choice(CLEAN)) if rng.uniform() < CLEAN_PART else str(rng.choice(CLASSES))
        features.append(features_of(acquire(scene, rng, fault)).astype(np.float16))
        if fault in CLASSES:
            labels[i, CLASSES.index(fault)] = 1
    return np.stack(features), labels
