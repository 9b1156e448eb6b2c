# SPDX-License-Identifier: Apache-2.0
"""Train models/ct-denoise."""

from __future__ import annotations

from multiprocessing import Pool
from typing import NamedTuple

import numpy as np
import torch

from appliance.imaging.remove_noise import MOST_SIGMA
from training.low_dose_ct import draw_beam, hu_phantom, scan_low_dose
from training.patches import add_lesions
from training.unet import UNet

SEED = 2
N_IMAGES, IMAGE_PX = 160, 256
BATCH, PATCH_PX = 16, 64
SCALE_HU = 1000.0
STEPS, REDUCED_STEPS = 6_000, 600
LEARNING_RATE = 2e-3
FLOOR = 0.004  # 4 HU: noise below that weighs no more


class Bodies(NamedTuple):
    """Simulated scans, each (image, y, x), in SCALE_HU from water."""

    truth: torch.Tensor
    noise: torch.Tensor
    level: torch.Tensor


def _scan(number: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, number])
    truth = hu_phantom(rng, IMAGE_PX)
    beam, pixel_mm, level_hu = draw_beam(rng, IMAGE_PX), rng.uniform(0.5, 1.4), np.exp(rng.uniform(*np.log([5, 60])))
    (scan,) = scan_low_dose(rng, truth, beam, pixel_mm, level_hu)
    return np.stack([scan.truth, scan.noise, scan.level]) / np.float32(SCALE_HU)


def make_pool(n_images: int, processes: int = 1) -> Bodies:
    """Return the scans that patches are drawn from."""
    with Pool(processes) as pool:
        scans = torch.from_numpy(np.stack(pool.map(_scan, range(n_images), 4)))
    return Bodies(scans[:, 0], scans[:, 1], scans[:, 2])


def draw_batch(pool: Bodies, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise-free patches, the noise level as it would be known, and the noisy patches, (n, 1, y, x)."""
    which = torch.randint(0, len(pool.truth), (BATCH,), generator=rng).tolist()
    corners = torch.randint(0, IMAGE_PX - PATCH_PX + 1, (BATCH, 2), generator=rng).tolist()
    drawn = torch.stack(
        [
            torch.stack([part[i, y : y + PATCH_PX, x : x + PATCH_PX] for part in pool])
            for i, (y, x) in zip(which, corners, strict=True)
        ]
    )
    if torch.rand((), generator=rng) < 0.5:
        drawn = drawn.transpose(2, 3)
    if torch.rand((), generator=rng) < 0.5:
        drawn = drawn.flip(3)
    truth, noise, level = drawn.split(1, dim=1)
    dose = torch.rand(BATCH, 1, 1, 1, generator=rng) * 1.5
    noise, level = noise * dose, level * dose
    truth = add_lesions(truth + 1, level, rng) - 1  # never less than air
    guess = level.mean((1, 2, 3), keepdim=True) * torch.exp(0.2 * torch.randn(BATCH, 1, 1, 1, generator=rng))
    known = torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.5
    return truth, torch.where(known, level, guess), truth + noise


def error_of(net: UNet, rng: torch.Generator, pool: Bodies) -> torch.Tensor:
    """Return the squared error after subtraction, weighted so that low noise counts too."""
    truth, level, noisy = draw_batch(pool, rng)
    noise = net(torch.cat([noisy, level], 1))[0].float()
    noise = torch.maximum(torch.minimum(noise, MOST_SIGMA * level), -MOST_SIGMA * level)
    weight = (level.mean((1, 2, 3), keepdim=True) + FLOOR) ** -1.5
    return ((noisy - noise - truth) ** 2 * weight).mean()
