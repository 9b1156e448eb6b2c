# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-denoise: `python -m training.mr_denoise --series T1.tar.xz`, about 40 minutes on one core.

Writes the ONNX file, the golden inputs and outputs, and the card with measured figures. `--reduced` trains a tenth
as long and prints what that reaches.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import torch

from operators.stages.denoise import MOST_SIGMA
from training.patches import add_lesions, draw_level, draw_truth, make_pool
from training.train import train
from training.unet import UNet

SEED = 1
N_IMAGES = 800
BATCH, PATCH_PX = 16, 64
STEPS, REDUCED_STEPS = 40_000, 3_000
LEARNING_RATE = 2e-3


def draw_batch(pool: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise-free patches, their noise level, and the noisy patches."""
    truth = draw_truth(pool, rng, BATCH, PATCH_PX)
    level = draw_level(rng, BATCH, PATCH_PX)
    truth = add_lesions(truth, level, rng)
    return truth, level, add_rician(truth, level, rng)


def add_rician(truth: torch.Tensor, level: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return the magnitude of `truth` with complex normal noise of standard deviation `level` in each part."""
    real, imaginary = level * torch.randn(2, *truth.shape, generator=rng)
    return torch.hypot(truth + real, imaginary)


def weighted_error(noise: torch.Tensor, truth: torch.Tensor, level: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Return the squared error after subtraction, weighted so that low noise counts too."""
    noise = torch.maximum(torch.minimum(noise.float(), MOST_SIGMA * level), -MOST_SIGMA * level)
    mean_level = level.mean((1, 2, 3), keepdim=True)
    return ((noisy - noise - truth) ** 2 / (mean_level + 0.02) ** 1.5).mean()


def error_of(net: UNet, rng: torch.Generator, pool: torch.Tensor) -> torch.Tensor:
    """Return the error on a new batch."""
    truth, level, noisy = draw_batch(pool, rng)
    return weighted_error(net(torch.cat([noisy, level], 1))[0], truth, level, noisy)
