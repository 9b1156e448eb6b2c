# SPDX-License-Identifier: Apache-2.0
"""Measure how well faults are told from clean frames on held-out anatomy and settings, beside a one-class score.

The peer is PaDiM's idea (Defard et al. 2021, doi:10.1007/978-3-030-68799-1_35) without its network: at each place of
the image a Gaussian of a few local features over clean frames, and the largest Mahalanobis distance as the score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.inference.card import Detection
from training.fault_scenes import CLASSES, features_of, held_out_scene, trained_scene
from training.simulate_faults import acquire

Floats = NDArray[np.float32]

N_SCENES = 60
PEER = "one-class Gaussian of local image features (after PaDiM), fitted to clean frames"
DATA = f"{N_SCENES} held-out scenes: chest and Shepp-Logan head, other matrices, 6 to 16 coils, acceleration 1 to 3"
_CELLS = 8
_REGULARISATION = 0.01


def auroc(clean: Sequence[float], faulty: Sequence[float]) -> float:
    """Return the probability that a faulty frame scores above a clean one; ties count half."""
    a, b = np.asarray(clean)[:, None], np.asarray(faulty)[None, :]
    return float((b > a).mean() + (b == a).mean() / 2)


class OneClass:
    """The peer."""

    def __init__(self, clean: Sequence[Floats]) -> None:
        cells = np.stack([_cells(features) for features in clean])  # (frame, cell, feature)
        self._mean = cells.mean(axis=0)
        centred = cells - self._mean
        covariance = np.einsum("fci,fcj->cij", centred, centred) / len(cells)
        self._inverse = np.linalg.inv(covariance + _REGULARISATION * np.eye(cells.shape[2]))

    def score(self, features: Floats) -> float:
        """Return the largest Mahalanobis distance over the image's cells."""
        d = _cells(features) - self._mean
        return float(np.sqrt(np.einsum("ci,cij,cj->c", d, self._inverse, d)).max())


def _cells(features: Floats) -> NDArray[np.float64]:
    """Mean, spread and roughness along y and x of the log image in each of 8 × 8 cells."""
    image = features[0].astype(np.float64)
    maps = [image, np.abs(np.diff(image, axis=0, prepend=image[:1])), np.abs(np.diff(image, axis=1, prepend=0))]
    side = len(image) // _CELLS
    tiles = [m.reshape(_CELLS, side, _CELLS, side).swapaxes(1, 2).reshape(_CELLS**2, -1) for m in maps]
    return np.stack([tiles[0].mean(1), tiles[0].std(1), tiles[1].mean(1), tiles[2].mean(1)], axis=1)


def validate_faults(run: Callable[[Floats], Floats], seed: int = 7) -> list[Detection]:
    """Return one row for each class; `run` gives logits (1, class) for (1, channel, y, x)."""
    fitted = [trained_scene(seed, number) for number in range(N_SCENES)]
    peer = OneClass([features_of(acquire(scene, np.random.default_rng([seed, 3]))) for scene in fitted])
    scores: dict[str, list[tuple[Floats, float]]] = {fault: [] for fault in ("", *CLASSES)}
    for number in range(N_SCENES):
        scene, rng = held_out_scene(seed, number), np.random.default_rng([seed, number, 2])
        for fault, row in scores.items():
            features = features_of(acquire(scene, rng, fault))
            row.append((run(features[None])[0], peer.score(features)))
    rows = []
    for n, fault in enumerate(CLASSES):
        ours = auroc([s[0][n] for s in scores[""]], [s[0][n] for s in scores[fault]])
        theirs = auroc([s[1] for s in scores[""]], [s[1] for s in scores[fault]])
        rows.append(Detection(data=DATA, fault=fault, auroc=round(ours, 4), other=PEER, other_auroc=round(theirs, 4)))
    return rows
