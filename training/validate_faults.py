# SPDX-License-Identifier: Apache-2.0
"""How well faults are told from clean frames, and a one-class score to compare with.

The peer is PaDiM's idea (Defard et al. 2021, doi:10.1007/978-3-030-68799-1_35) without its network: at each place of
the image a Gaussian of a few local features over clean frames, and the largest Mahalanobis distance as the score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PEER = "one-class Gaussian of local image features (after PaDiM), fitted to clean frames"
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
