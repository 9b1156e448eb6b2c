# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-denoise-cine, which remembers the frames before: `python -m training.mr_denoise_cine`.

It starts from the weights of models/mr-denoise and learns on moving dead leaves: a background that stands still or
drifts, something in front of it that moves on its own, now and then a cut to another scene. What it carries from
frame to frame are features, not images (as in Fuoli, Gu, Timofte 2019, arXiv:1909.08080), so nothing is warped or
averaged by a rule: where things move it has to see from the frame itself that its memory does not fit.
"""

from __future__ import annotations

import torch
from torch.nn.functional import grid_sample, interpolate

from training.mr_denoise import add_rician, weighted_error
from training.patches import add_lesions, draw_level, draw_truth
from training.unet import UNet

SEED = 2
BATCH, PATCH_PX, FRAMES = 8, 64, 6
MEMORY_CHANNELS = 32
STEPS, REDUCED_STEPS = 8_000, 600
N_BATCHES = 400
LEARNING_RATE = 1e-3
_MARGIN_PX = 16  # of an image around what is looked at
_FASTEST_PX = 4.0  # a frame


def draw_path(rng: torch.Generator, n: int) -> torch.Tensor:
    """Return positions (FRAMES, n, 2) in pixels, around 0: at rest, drifting, or swinging."""
    time = torch.arange(FRAMES)[:, None, None] - (FRAMES - 1) / 2
    moves = (torch.rand(n, 1, generator=rng) < 0.5).float()
    angle = 6.2832 * torch.rand(n, 1, generator=rng)
    direction = torch.cat([angle.cos(), angle.sin()], 1) * moves
    speed = _FASTEST_PX * torch.rand(n, 1, generator=rng) ** 2
    swings = torch.rand(n, 1, generator=rng) < 0.4
    pace, phase = 0.3 + 1.2 * torch.rand(n, 1, generator=rng), 6.2832 * torch.rand(n, 1, generator=rng)
    along = torch.where(swings, torch.sin(pace * time + phase) / pace, time)
    return (along * speed * direction).clamp(-_MARGIN_PX + 2, _MARGIN_PX - 2)


def look(images: torch.Tensor, path: torch.Tensor, swell: torch.Tensor) -> torch.Tensor:
    """Return (FRAMES, n, 1, y, x): the middle of `images`, moved along `path`, scaled by `swell` (FRAMES, n)."""
    n, size = len(images), images.shape[-1]
    inner = size - 2 * _MARGIN_PX
    axis = (torch.arange(inner) - (inner - 1) / 2) * (2 / size)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    places = grid * swell[..., None, None, None] + path[:, :, None, None] * (2 / size)
    frames = [grid_sample(images, p, mode="bicubic", padding_mode="border", align_corners=False) for p in places]
    return torch.stack(frames).clamp_min(0).reshape(FRAMES, n, 1, inner, inner)


def _swell(rng: torch.Generator, n: int) -> torch.Tensor:
    time = torch.arange(FRAMES)[:, None]
    size = 0.15 * torch.rand(n, generator=rng) * (torch.rand(n, generator=rng) < 0.4)
    return 1 + size * torch.sin((0.2 + 1.0 * torch.rand(n, generator=rng)) * time + 6.3 * torch.rand(n, generator=rng))


def draw_sequence(pool: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return truth (FRAMES, n, 1, y, x) and noise level (n, 1, y, x)."""
    wide = PATCH_PX + 2 * _MARGIN_PX
    level = draw_level(rng, BATCH, PATCH_PX)
    back = look(_scene(pool, rng, level), draw_path(rng, BATCH), torch.ones(FRAMES, BATCH))
    blob = interpolate(torch.randn(BATCH, 1, 6, 6, generator=rng), (wide, wide), mode="bicubic")
    blob = (4 * (blob - 1.2 * torch.rand(BATCH, 1, 1, 1, generator=rng))).clamp(0, 1)
    both = torch.cat([_scene(pool, rng, level) * blob, blob], 0)
    path, swell = draw_path(rng, BATCH), _swell(rng, BATCH)
    front, cover = look(both, path.repeat(1, 2, 1), swell.repeat(1, 2)).clamp_min(0).chunk(2, 1)
    truth = back * (1 - cover.clamp_max(1)) + front
    cut = torch.randint(1, 10 * FRAMES, (BATCH,), generator=rng).tolist()
    for i, frame in enumerate(cut):
        if frame < FRAMES:
            truth[frame:, i] = truth[frame:, i - 1].clone()
    return truth, level


def _scene(pool: torch.Tensor, rng: torch.Generator, level: torch.Tensor) -> torch.Tensor:
    wide = PATCH_PX + 2 * _MARGIN_PX
    mean = level.mean((1, 2, 3), keepdim=True).expand(-1, -1, wide, wide)
    return add_lesions(draw_truth(pool, rng, BATCH, wide), mean, rng)


def make_sequences(pool: torch.Tensor, n_batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of (truth, level); drawing them takes longer than a training step, their noise is drawn anew."""
    rng = torch.Generator().manual_seed(SEED)
    return [draw_sequence(pool, rng) for _ in range(n_batches)]


def error_of(net: UNet, rng: torch.Generator, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the mean error over the frames of a batch of sequences with new noise."""
    truth, level = batches[int(torch.randint(0, len(batches), (), generator=rng))]
    memory = torch.zeros(BATCH, MEMORY_CHANNELS, PATCH_PX // 2, PATCH_PX // 2)
    total = torch.zeros(())
    for frame in truth:
        noisy = add_rician(frame, level, rng)
        noise, memory = net(torch.cat([noisy, level], 1), memory)
        total = total + weighted_error(noise, frame, level, noisy)
    return total / FRAMES
