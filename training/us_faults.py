# SPDX-License-Identifier: Apache-2.0
"""Ultrasound clips with planted faults of the acquisition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.speckle import Probe, draw_probe, draw_tissue, show

Image = NDArray[np.float32]

KINDS = ("probe_decoupling", "dropped_lines", "gain_saturation", "frozen_image")
FRAME_S = 0.05


class Planted(NamedTuple):
    """The frame with the fault, 0 to 255, and where: the first column, or 0."""

    image: Image
    column: int


def clip(rng: np.random.Generator, size: int, n_frames: int) -> list[Image]:
    """Return frames of a probe that moves over tissue, 0 to 255, whole numbers as displays have them."""
    probe = draw_probe(rng)
    probe = Probe(**{**vars(probe), "gain_db": 0.75 * probe.range_db, "attenuation_db": probe.attenuation_db / 2})
    shown = 255 * show(rng, draw_tissue(rng, size), probe)[0]
    frames, at = [], 0.0
    for _ in range(n_frames):
        at += rng.uniform(0.3, 3)
        frames.append(np.rint(np.roll(shown, round(at), axis=1) + rng.uniform(-1, 1, shown.shape)).clip(0, 255))
    return [frame.astype(np.float32) for frame in frames]


def plant(rng: np.random.Generator, kind: str, frame: Image) -> Planted:
    """Return `frame` (y, x) with a fault of `kind` but "frozen_image", of a size and at a place drawn at random."""
    image, (n_rows, n_columns) = frame.copy(), frame.shape
    if kind == "gain_saturation":  # up, until 20 to 60 % of the echoes that were there are white
        up = 255 - np.quantile(image[image > 0], 1 - rng.uniform(0.2, 0.6))
        return Planted(np.where(image > 0, np.minimum(image + up, 255), 0).astype(np.float32), 0)
    if kind == "dropped_lines":
        width = max(1, round(rng.uniform(0.004, 0.018) * n_columns))
        lit = frame.mean(axis=0)[width:-width] > 0.5 * frame.mean()  # no line drops in a shadow
        echoes = np.flatnonzero(lit) + width
        column = int(rng.choice(echoes))
        image[:, column : column + width] = rng.uniform(0, 4, (n_rows, width))
        return Planted(np.rint(image), column)
    width = round(rng.uniform(0.4, 1.0) * n_columns)
    column = int(rng.integers(0, n_columns - width + 1))
    image[:, column : column + width] *= np.float32(rng.uniform(0, 0.15))
    for row in range(0, n_rows // 4, max(4, n_rows // 40)):  # the pulse runs to and fro in the probe's cover
        image[row : row + 2, column : column + width] = 200 * np.exp(-4 * row / n_rows)
    return Planted(image, column)
