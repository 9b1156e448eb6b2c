# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-denoise: `python -m training.mr_denoise --series T1.tar.xz`, about an hour on one core.

Writes the ONNX file, the golden inputs and outputs, and the card with measured figures. `--reduced` trains a
twenty-fourth of that, in less than five minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from appliance.inference.card import Input, Output, Training
from appliance.inference.golden import plain_inputs
from training.dead_leaves import Image, scanned_leaves
from training.patches import LARGEST_LEVEL, add_lesions, draw_level, draw_truth, make_pool
from training.phantoms import scanned_phantom
from training.train import train
from training.unet import INPUT, MULTIPLE_PX, NOISE, UNet, to_onnx
from training.validate_denoise import HELD_OUT, rician, validate_denoise
from training.weighted_error import weighted_error
from training.write_model import arguments, write_model

SEED = 1
N_LEAVES, N_PHANTOMS = 1200, 500
BATCH, PATCH_PX = 16, 64
GOLDEN_PX = (96, 80)
TOLERANCE = {"f32": 2e-5, "bf16": 3e-2}  # f32: order of summation; bf16: 8 bits, twice what AVX-512 BF16 gave
STEPS, LEARNING_RATE = 64_000, 1e-3  # with 2e-3 it came apart after 7,000 steps
REDUCED_SHARE = 24  # of steps and images


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


def error_of(net: UNet, rng: torch.Generator, pool: torch.Tensor) -> torch.Tensor:
    """Return the error on a new batch."""
    truth, level, noisy = draw_batch(pool, rng)
    return weighted_error(net(torch.cat([noisy, level], 1))[0], truth, level, noisy)


def golden_inputs() -> dict[str, tuple[Image]]:
    """Return plain inputs and noisy images over the whole range of levels, none of which a training step saw."""
    cases = plain_inputs([(1, 2, *GOLDEN_PX)])
    for (given,) in cases.values():
        given[:, 1] *= LARGEST_LEVEL  # a level outside its range says nothing of an engine
    for percent in (0, 1, 2, 5, 10, 20):
        rng = np.random.default_rng([SEED, HELD_OUT - 1, percent])
        image = rician(rng, scanned_leaves(rng, GOLDEN_PX[0])[:, : GOLDEN_PX[1]], percent / 100)
        cases[f"sigma_{percent:02}"] = (np.stack([image, np.full_like(image, percent / 100)])[None],)
    return cases


def make_both_pools(share: int = 1) -> torch.Tensor:
    """Return dead leaves and phantoms, one in `share` of them."""
    kinds = ((scanned_leaves, N_LEAVES), (scanned_phantom, N_PHANTOMS))
    return torch.cat([make_pool(kind, SEED, n // share) for kind, n in kinds])


def met(pool: torch.Tensor) -> Iterator[tuple[Image, float]]:
    """Give images as the stage would meet them, with the levels that were trained on."""
    rng = np.random.default_rng([SEED, HELD_OUT - 2])
    for image in pool.numpy():
        level = LARGEST_LEVEL * float(rng.uniform()) ** 1.5
        yield rician(rng, image, level), level


def draft_card(minutes: float) -> dict[str, Any]:
    """Return what there is to say of the model before it is measured."""
    return {
        "name": "mr-denoise",
        "version": "3",
        "what": "Names the noise in a magnitude MR image: a U-Net of 520,000 weights on every second pixel.",
        "use": "research use only, not for diagnosis",
        "trained_on": f"{N_LEAVES} simulated dead-leaves images, bent, folded and textured, and {N_PHANTOMS} piecewise "
        "constant phantoms, sampled and filtered in k-space, half of the patches with small disks, with Rician noise "
        f"of 0 to {100 * LARGEST_LEVEL:.0f} % of the brightest tissue, half of them with a level that varies in space. "
        "No patient data.",
        "limits": [
            "Trained on simulated images only; measured on the sets below and nothing else.",
            "White Rician noise: images that were filtered or interpolated after their noise arose carry correlated "
            "noise, which it takes for structure and leaves in.",
            "Contrast below the noise level is smoothed away together with the noise; docs/models.md has the table.",
            "Where no noise map is given, the level is estimated, and fine structure counts as noise.",
            "Not for CT or ultrasound.",
        ],
        "input": Input(
            name=INPUT,
            channels=("image", "noise standard deviation"),
            scaling="both divided by the same number, which brings the brightest tissue to about 1",
            smallest_px=16,
            typical_px=256,
            largest_px=1024,
            multiple_px=MULTIPLE_PX,
        ),
        "output": Output(name=NOISE, meaning="to be subtracted from the image, in the input's units"),
        "deadline_ms": 50.0,  # 20 frames a second
        "training": Training(
            command="python -m training.mr_denoise --series mr_t1_siemens_HFS.tar.xz",
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}, {STEPS} steps",
        ),
    }


def main() -> None:
    """Train, export, measure, write."""
    given = arguments(__doc__ or "", series=True)
    start, share = time.monotonic(), REDUCED_SHARE if given.reduced else 1
    pool = make_both_pools(share)
    net = train(UNet, partial(error_of, pool=pool), STEPS // share, LEARNING_RATE, SEED)
    draft = draft_card((time.monotonic() - start) / 60)
    measure = partial(validate_denoise, series=given.series, multiple_px=MULTIPLE_PX)
    write_model(given.folder, to_onnx(net, "mr-denoise"), draft, golden_inputs(), TOLERANCE, measure, met(pool[::8]))


if __name__ == "__main__":
    main()
