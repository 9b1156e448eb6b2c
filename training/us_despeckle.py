# SPDX-License-Identifier: Apache-2.0
"""Train models/us-despeckle."""

from __future__ import annotations

from multiprocessing import Pool
from typing import NamedTuple

import numpy as np
import torch

from appliance.imaging.remove_noise import MOST_SIGMA
from training.speckle import LOG_RAYLEIGH_DB, draw_probe, draw_tissue, show
from training.unet import UNet

SEED = 3
N_IMAGES, IMAGE_PX = 240, 256
BATCH, PATCH_PX = 16, 64
STEPS, REDUCED_STEPS = 6_000, 600
LEARNING_RATE = 2e-3


class Displays(NamedTuple):
    """Simulated displays, (image, y, x), 0 black to 1 white, and the spread of their speckle, (image,)."""

    truth: torch.Tensor
    shown: torch.Tensor
    level: torch.Tensor


def _display(number: int) -> tuple[np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng([SEED, number])
    probe = draw_probe(rng)
    shown, truth = show(rng, draw_tissue(rng, IMAGE_PX), probe)
    return truth, shown, LOG_RAYLEIGH_DB / probe.range_db


def make_pool(n_images: int, processes: int = 1) -> Displays:
    """Return the displays that patches are drawn from."""
    with Pool(processes) as pool:
        truths, shown, levels = zip(*pool.map(_display, range(n_images), 4), strict=True)
    return Displays(*(torch.from_numpy(np.stack(part).astype(np.float32)) for part in (truths, shown, levels)))


def draw_batch(pool: Displays, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return patches without speckle, the spread of the speckle as it would be known, and with it, (n, 1, y, x).

    Half of them have less of it, as a machine gives that averages frames or angles.
    """
    which = torch.randint(0, len(pool.truth), (BATCH,), generator=rng)
    corners = torch.randint(0, IMAGE_PX - PATCH_PX + 1, (BATCH, 2), generator=rng).tolist()
    boxes = [(i, slice(y, y + PATCH_PX), slice(x, x + PATCH_PX)) for i, (y, x) in zip(which, corners, strict=True)]
    truth, shown = (torch.stack([part[box] for box in boxes])[:, None] for part in (pool.truth, pool.shown))
    if torch.rand((), generator=rng) < 0.5:
        truth, shown = truth.flip(3), shown.flip(3)
    part = torch.rand(BATCH, 1, 1, 1, generator=rng)
    part = torch.where(torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.5, part, torch.ones_like(part))
    level = pool.level[which][:, None, None, None] * part
    guess = level * torch.exp(0.15 * torch.randn(BATCH, 1, 1, 1, generator=rng))
    return truth, guess.expand_as(truth), truth + part * (shown - truth)


def error_of(net: UNet, rng: torch.Generator, pool: Displays) -> torch.Tensor:
    """Return the squared error after subtraction, weighted so that little speckle counts too."""
    truth, level, shown = draw_batch(pool, rng)
    noise = net(torch.cat([shown, level], 1))[0].float()
    noise = torch.maximum(torch.minimum(noise, MOST_SIGMA * level), -MOST_SIGMA * level)
    weight = (level.mean((1, 2, 3), keepdim=True) + 0.02) ** -1.5
    return ((shown - noise - truth) ** 2 * weight).mean()
