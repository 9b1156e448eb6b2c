# SPDX-License-Identifier: Apache-2.0
"""Train models/ct-denoise: `python -m training.ct_denoise --series ct_head_ge.tar.xz`, a quarter of an hour on a core.

Begins with the weights of models/mr-denoise: after 1,000 steps the error is an eighth lower than without. Writes the
ONNX file, the golden inputs and outputs, and the card with measured figures. `--reduced` trains a tenth as long
and prints what that reaches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
import torch

from appliance.inference.card import Input, Output, Training, read_model, shipped_models
from appliance.inference.golden import plain_inputs
from training.low_dose_ct import draw_beam, draw_scans, hu_phantom, scan_low_dose
from training.patches import add_lesions
from training.train import train
from training.unet import INPUT, MULTIPLE_PX, NOISE, UNet, take_weights, to_onnx
from training.validate_ct import validate_ct
from training.validate_denoise import HELD_OUT
from training.weighted_error import weighted_error
from training.write_model import arguments, write_model

SEED = 2
BEGIN_WITH = "mr-denoise"
N_IMAGES, IMAGE_PX = 96, 256
BATCH, PATCH_PX = 16, 64
SCALE_HU = 1000.0
STEPS, REDUCED = 8_000, 10
LEARNING_RATE = 1e-3
GOLDEN_PX = (96, 80)
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}  # of 1000 HU; bf16 has 8 bits of mantissa, and bone reaches 1.5
FLOOR = 0.004  # 4 HU: noise below that weighs no more


class Bodies(NamedTuple):
    """Simulated scans, each (image, y, x), in SCALE_HU from water."""

    truth: torch.Tensor
    noise: torch.Tensor
    again: torch.Tensor  # the noise of a second scan
    level: torch.Tensor


def _scan(number: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, number])
    one, two = draw_scans(rng, number, float(np.exp(rng.uniform(*np.log([5, 60])))), n_scans=2)
    return np.stack([one.truth, one.noise, two.noise, one.level]) / np.float32(SCALE_HU)


def make_pool(n_images: int, processes: int = 1) -> Bodies:
    """Return the scans that patches are drawn from."""
    with Pool(processes) as pool:
        scans = torch.from_numpy(np.stack(pool.map(_scan, range(n_images), 4)))
    return Bodies(*scans.unbind(1))


def draw_batch(pool: Bodies, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise-free patches, the noise level as it would be known, and the noisy patches, (n, 1, y, x).

    Two scans' noise, mixed at any angle, is another of the same covariance: none is seen twice.
    """
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
    truth, one, two, level = drawn.split(1, dim=1)
    dose, angle = torch.rand(2, BATCH, 1, 1, 1, generator=rng)
    dose, angle = 1.5 * dose, 2 * torch.pi * angle
    noise, level = dose * (angle.cos() * one + angle.sin() * two), dose * level
    truth = add_lesions(truth + 1, level, rng) - 1  # never less than air
    guess = level.mean((1, 2, 3), keepdim=True) * torch.exp(0.2 * torch.randn(BATCH, 1, 1, 1, generator=rng))
    known = torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.5
    return truth, torch.where(known, level, guess), truth + noise


def begin() -> UNet:
    """Return the network that knows edges and even tissue from magnitude images."""
    net = UNet()
    take_weights(net, read_model(BEGIN_WITH, shipped_models()).onnx)
    return net


def error_of(net: UNet, rng: torch.Generator, pool: Bodies) -> torch.Tensor:
    """Return the error on a new batch."""
    truth, level, noisy = draw_batch(pool, rng)
    return weighted_error(net(torch.cat([noisy, level], 1))[0], truth, level, noisy, FLOOR)


def golden_inputs() -> dict[str, tuple[np.ndarray]]:
    """Return plain inputs and low-dose bodies over the whole range of levels, none of which a training step saw."""
    cases = plain_inputs([(1, 2, *GOLDEN_PX)])
    for (given,) in cases.values():
        given[:, 1] *= 0.1  # 100 HU: a level outside its range says nothing of an engine
    for level_hu in (1, 5, 20, 60):
        rng = np.random.default_rng([SEED, HELD_OUT - 1, level_hu])
        truth = hu_phantom(rng, GOLDEN_PX[0])
        (scan,) = scan_low_dose(rng, truth, draw_beam(rng, GOLDEN_PX[0]), 2.0, float(level_hu))
        both = np.stack([truth + scan.noise, scan.level])[None, :, :, : GOLDEN_PX[1]] / np.float32(SCALE_HU)
        cases[f"level_{level_hu:02}_hu"] = (np.ascontiguousarray(both),)
    return cases


def met(pool: Bodies) -> Iterator[tuple[np.ndarray, float]]:
    """Give images as the stage would meet them, in SCALE_HU, with the levels that were trained on."""
    for truth, noise, _, level in zip(*(part.numpy() for part in pool), strict=True):
        yield truth + noise, float(np.median(level))


def draft_card(minutes: float) -> dict[str, Any]:
    """Return what there is to say of the model before it is measured."""
    return {
        "name": "ct-denoise",
        "version": "1",
        "what": "Names the noise in a CT image in HU: a U-Net of 520,000 weights on every second pixel.",
        "use": "research use only, not for diagnosis",
        "trained_on": f"{N_IMAGES} simulated bodies of air, lung, fat, soft tissue and bone, one in three of even "
        "tissues, each with the noise of two parallel-beam scans of 360 views: Poisson and electronic in the counts, "
        "reconstructed with kernels between "
        "smooth and sharp; 0 to 90 HU at the median of the body; half of the patches with small disks. "
        f"Began with the weights of {BEGIN_WITH}, version {read_model(BEGIN_WITH, shipped_models()).card.version}. "
        "No patient data.",
        "limits": [
            "Trained on simulated images only; measured on the sets below and nothing else.",
            "Noise of filtered back-projection. Iterative or deep reconstruction leaves another texture, on which it "
            "was never measured.",
            "Adaptive filters, cone-beam and helical interpolation, scatter and beam hardening were not simulated.",
            "The level is estimated as one number where no noise map is given; where photons starve, noise is several "
            "times stronger than that number and stays in.",
            "Contrast below the noise level is smoothed away together with the noise; docs/models.md has the table.",
            "Streaks of metal are no noise: they stay.",
        ],
        "input": Input(
            name=INPUT,
            channels=("image", "noise standard deviation"),
            scaling=f"Hounsfield units divided by {SCALE_HU:.0f}: water is 0, air -1",
            domain="ct-hu",
            smallest_px=16,
            typical_px=512,
            largest_px=1024,
            multiple_px=MULTIPLE_PX,
        ),
        "output": Output(name=NOISE, meaning="to be subtracted from the image, in the input's units"),
        "deadline_ms": 100.0,
        "training": Training(
            command="python -m training.ct_denoise --series ct_head_ge.tar.xz",
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}, {STEPS} steps",
        ),
    }


def main() -> None:
    """Train, export, measure, write."""
    given = arguments(__doc__ or "", series=True)
    start = time.monotonic()
    pool = make_pool(N_IMAGES // 8 if given.reduced else N_IMAGES)
    steps = STEPS // REDUCED if given.reduced else STEPS
    net = train(begin, partial(error_of, pool=pool), steps, LEARNING_RATE, SEED)
    draft = draft_card((time.monotonic() - start) / 60)
    measure = partial(validate_ct, series=given.series, multiple_px=MULTIPLE_PX)
    write_model(given.folder, to_onnx(net, "ct-denoise"), draft, golden_inputs(), TOLERANCE, measure, met(pool))


if __name__ == "__main__":
    main()
