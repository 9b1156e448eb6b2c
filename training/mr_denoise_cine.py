# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-denoise-cine, which remembers the frames before: `python -m training.mr_denoise_cine`,
about 15 minutes on one core. `--reduced` trains a twenty-fourth of that.

What it remembers is a rule, training/add_up.py: the mean of the frames where nothing changed. Learnt is what is taken
out of that mean: starting from the weights of models/mr-denoise, on moving dead leaves and phantoms: a background that
stands still or drifts, something in front of it that moves on its own, now and then a cut to another scene.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import grid_sample, interpolate

from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Memory, Training, Validation
from appliance.mri.phantom import cine_image
from training import mr_denoise
from training.add_up import MOST_FRAMES, add_up
from training.dead_leaves import Image
from training.mr_denoise import add_rician
from training.patches import add_lesions, draw_level, draw_truth
from training.train import train
from training.unet import MEMORY, MULTIPLE_PX, NEXT_MEMORY, UNet, take_weights, to_onnx
from training.validate_denoise import NOISE_PERCENT, Run, body_psnr_db, non_local_means, rician
from training.weighted_error import weighted_error
from training.write_model import arguments, write_model

SEED = 2
BATCH, PATCH_PX, FRAMES = 16, 64, 16
STEPS = 8_000
N_BATCHES = 150
LEARNING_RATE = 5e-4
TOLERANCE = {"f32": 2e-5, "bf16": 8e-2}  # bf16: how much of the past counts where something moves is a steep function
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
    """Return the error on one frame of a batch of sequences with new noise, after those before it."""
    truth, level = batches[int(torch.randint(0, len(batches), (), generator=rng))]
    last = int(torch.randint(0, FRAMES, (), generator=rng))
    memory = torch.zeros(BATCH, 2, PATCH_PX, PATCH_PX)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for frame in truth[:last]:
            memory = add_up(net, add_rician(frame, level, rng), level, memory).memory
    noisy = add_rician(truth[last], level, rng)
    noise, _ = net(torch.cat([noisy, level], 1), memory)
    return weighted_error(noise, truth[last], level, noisy)


def golden_inputs() -> dict[str, tuple[Image, ...]]:
    """Return the cases of the single-frame model, each with an empty memory and with one of a frame like it, of another
    one, and of many."""
    cases: dict[str, tuple[Image, ...]] = {}
    rng = np.random.default_rng(SEED)
    for name, (given,) in mr_denoise.golden_inputs().items():
        image, level = given[:, :1], given[:, 1:]
        like = image + level * rng.standard_normal(image.shape, np.float32)
        cases[f"{name}-first"] = (given, np.zeros_like(given))
        cases[f"{name}-later"] = (given, np.concatenate([like, np.full_like(like, 0.3)], 1))
        cases[f"{name}-moved"] = (given, np.concatenate([np.roll(like, 40, (2, 3)), np.full_like(like, 0.9)], 1))
    return cases


def measure(run: Run, n_frames: int = 24, settled: int = 6) -> list[Validation]:
    """Return PSNR in the body on the beating chest phantom, from the sixth frame on, beside each frame on its own."""
    rows = []
    for percent in NOISE_PERCENT:
        memory: Image | None = np.zeros((1, 2, 256, 256), np.float32)
        found = []
        for index in range(n_frames):
            truth, sigma = cine_image(index), percent / 100
            noisy = rician(np.random.default_rng([SEED, index]), truth, sigma)
            cleaned = remove_noise(noisy, sigma, 1.0, run, memory, multiple_px=MULTIPLE_PX)
            memory = cleaned.memory
            if index >= settled:
                images = (noisy, cleaned.image, non_local_means(noisy, sigma))
                found.append([body_psnr_db(image, truth) for image in images])
        noisy_db, model_db, other_db = (round(float(f), 2) for f in np.mean(found, axis=0))
        rows.append(
            Validation(
                data="beating chest phantom 256 x 256, frames 6 to 23; noise level known",
                noise_percent=percent,
                noisy_db=noisy_db,
                model_db=model_db,
                other="non-local means of each frame (scikit-image, as for mr-denoise)",
                other_db=other_db,
            )
        )
    return rows


def draft_card(minutes: float) -> dict[str, Any]:
    """Return what there is to say of the model before it is measured."""
    single = mr_denoise.draft_card(0)
    return {
        **single,
        "name": "mr-denoise-cine",
        "version": "2",
        "what": "mr-denoise with a memory: names the noise in each frame of a series that shows the same place again "
        "and again, knowing the mean of the frames before where nothing changed.",
        "trained_on": f"{N_BATCHES * BATCH} simulated sequences of {FRAMES} frames of dead leaves and phantoms: at "
        f"rest, drifting, swinging and swelling by up to {_FASTEST_PX:.0f} pixels a frame, with cuts to other scenes; "
        "Rician noise as for mr-denoise, from whose weights it starts. No patient data.",
        "limits": [
            *single["limits"],
            f"Motion of more than {_FASTEST_PX:.0f} pixels a frame was never trained on.",
            "A change over fewer than 6 x 6 pixels and below half the noise, or fainter and slower than that, is "
            f"not told from noise: it appears late, by up to {MOST_FRAMES} frames.",
            "Only for frames of the same place: slices and contrasts are remembered apart.",
        ],
        "memory": Memory(name=MEMORY, output=NEXT_MEMORY, channels=2, every_px=1),
        "training": Training(
            command="python -m training.mr_denoise_cine",
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}, {STEPS} steps",
        ),
    }


def _from_single(model: bytes) -> UNet:
    net = UNet(remembers=True)
    take_weights(net, model)
    return net


def main() -> None:
    """Train, export, measure, write."""
    given = arguments(__doc__ or "")
    start, share = time.monotonic(), mr_denoise.REDUCED_SHARE if given.reduced else 1
    pool = mr_denoise.make_both_pools(share)
    batches = make_sequences(pool, N_BATCHES // share)
    make = partial(_from_single, (given.folder / "mr-denoise.onnx").read_bytes())
    net = train(make, partial(error_of, batches=batches), STEPS // share, LEARNING_RATE, SEED)
    draft = draft_card((time.monotonic() - start) / 60)
    write_model(
        given.folder,
        to_onnx(net, draft["name"]),
        draft,
        golden_inputs(),
        TOLERANCE,
        measure,
        mr_denoise.met(pool[::8]),
    )


if __name__ == "__main__":
    main()
