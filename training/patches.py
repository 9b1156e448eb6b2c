# SPDX-License-Identifier: Apache-2.0
"""Draw noise-free patches with small lesions, and noise levels, from a pool of simulated images."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import Pool

import numpy as np
import torch
from torch.nn.functional import interpolate

from training.dead_leaves import Image

LARGEST_LEVEL = 0.25  # noise over the brightest tissue
_LESIONS = 3  # at most, in a patch


Kind = Callable[[np.random.Generator, int], Image]


def make_pool(kind: Kind, seed: int, n_images: int, size: int = 256) -> torch.Tensor:
    """Return float32 (image, y, x), brightest tissue near 1; the same for the same seed."""
    with Pool(2) as processes:
        images = processes.starmap(kind, [(np.random.default_rng([seed, i]), size) for i in range(n_images)], 8)
    return torch.from_numpy(np.stack(images))


def draw_truth(pool: torch.Tensor, rng: torch.Generator, n: int, size: int) -> torch.Tensor:
    """Return n patches of the pool, turned and mirrored at random, float32 (n, 1, size, size)."""
    which = torch.randint(0, len(pool), (n,), generator=rng).tolist()
    corners = torch.randint(0, pool.shape[-1] - size + 1, (n, 2), generator=rng).tolist()
    patches = [pool[i, y : y + size, x : x + size] for i, (y, x) in zip(which, corners, strict=True)]
    truth = torch.stack(patches)[:, None]
    if torch.rand((), generator=rng) < 0.5:
        truth = truth.transpose(2, 3)
    if torch.rand((), generator=rng) < 0.5:
        truth = truth.flip(3)
    return truth * (0.1 + 1.1 * torch.rand(n, 1, 1, 1, generator=rng))


def draw_level(rng: torch.Generator, n: int, size: int, largest: float = LARGEST_LEVEL) -> torch.Tensor:
    """Return noise levels (n, 1, size, size), low ones more often; half of them vary in space, as a g-factor does."""
    varies = 0.3 * (torch.rand(n, 1, 1, 1, generator=rng) < 0.5)
    field = interpolate(torch.randn(n, 1, 3, 3, generator=rng) * varies, (size, size), mode="bilinear")
    return largest * torch.rand(n, 1, 1, 1, generator=rng) ** 1.5 * torch.exp(field)


def add_lesions(truth: torch.Tensor, level: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return `truth` with up to three disks of 2 to 12 pixels and a contrast of 0.5 to 5 times the noise in half of
    the patches: rare in the pool, and what must not be lost."""
    n, size = len(truth), truth.shape[-1]
    axis = torch.arange(size, dtype=torch.float32)
    cy, cx, radius, contrast, sign = torch.rand(5, n, _LESIONS, 1, 1, generator=rng)
    distance = torch.hypot(axis[:, None] - size * cy, axis - size * cx)
    disk = (1 + 5 * radius + 0.5 - distance).clamp(0, 1)  # the edge as a pixel's area has it
    contrast = (0.5 + 4.5 * contrast) * torch.where(sign < 0.5, -1.0, 1.0)
    wanted = torch.rand(n, 1, 1, 1, generator=rng) < 0.5
    added = (contrast * disk).sum(1, keepdim=True) * level * wanted
    return (truth + added).clamp_min(0)
