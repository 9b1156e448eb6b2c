# SPDX-License-Identifier: Apache-2.0
"""What every denoiser's training brings down."""

from __future__ import annotations

import torch

from appliance.imaging.remove_noise import MOST_SIGMA

FLOOR = 0.02  # noise below that weighs no more


def weighted_error(
    noise: torch.Tensor, truth: torch.Tensor, level: torch.Tensor, noisy: torch.Tensor, floor: float = FLOOR
) -> torch.Tensor:
    """Return the squared error after subtraction of what `remove_noise` lets through, weighted so that low noise counts
    too; all (n, 1, y, x)."""
    noise = torch.maximum(torch.minimum(noise.float(), MOST_SIGMA * level), -MOST_SIGMA * level)
    mean_level = level.mean((1, 2, 3), keepdim=True)
    return ((noisy - noise - truth) ** 2 / (mean_level + floor) ** 1.5).mean()
