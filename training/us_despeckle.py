# SPDX-License-Identifier: Apache-2.0
"""Train models/us-despeckle: `python -m training.us_despeckle`, a quarter of an hour on one core.

Writes the ONNX file, the golden inputs and outputs, and the card with measured figures. `--reduced` trains on
an eighth of the displays for less than half as long and prints what that reaches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
import torch

from appliance.inference.card import Input, Output, Training
from appliance.inference.golden import plain_inputs
from training.speckle import LOG_RAYLEIGH_DB, draw_probe, draw_tissue, show
from training.train import train
from training.unet import INPUT, MULTIPLE_PX, NOISE, UNet, to_onnx
from training.validate_denoise import HELD_OUT
from training.validate_us import validate_us
from training.weighted_error import weighted_error
from training.write_model import arguments, write_model

SEED = 3
N_IMAGES, IMAGE_PX = 480, 256
BATCH, PATCH_PX = 16, 64
STEPS, REDUCED_STEPS = 10_000, 2_500  # fewer, and the moving average holds much of the random beginning
LEARNING_RATE = 1e-3
GOLDEN_PX = (96, 80)
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}  # of white; bf16 has 8 bits of mantissa


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


def _span(part: float, width: int, step: int) -> slice:
    start = int(part * (IMAGE_PX - width + 1))
    return slice(start, start + width, step)


def draw_batch(pool: Displays, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return patches without speckle, the spread of the speckle as it would be known, and with it, (n, 1, y, x).

    Half of them have less of it, as a machine gives that averages frames or angles; half are shown smaller, across or
    along the beam, and half with other gain and contrast, so that part of them is white: real displays differ in these.
    """
    steps = torch.randint(1, 3, (2,), generator=rng).tolist()
    wide = [PATCH_PX * step for step in steps]
    which = torch.randint(0, len(pool.truth), (BATCH,), generator=rng)
    corners = torch.rand(BATCH, 2, generator=rng).tolist()
    boxes = [
        (i, _span(y, wide[0], steps[0]), _span(x, wide[1], steps[1])) for i, (y, x) in zip(which, corners, strict=True)
    ]
    truth, shown = (torch.stack([part[box] for box in boxes])[:, None] for part in (pool.truth, pool.shown))
    if torch.rand((), generator=rng) < 0.5:
        truth, shown = truth.flip(3), shown.flip(3)
    part, gain, contrast = torch.rand(3, BATCH, 1, 1, 1, generator=rng)
    less, other = torch.rand(2, BATCH, 1, 1, 1, generator=rng) < 0.5
    part = torch.where(less, part, torch.ones_like(part))
    contrast = torch.where(other, 0.8 + 0.8 * contrast, torch.ones_like(contrast))
    gain = torch.where(other, 0.6 * gain - 0.2, torch.zeros_like(gain))
    shown = truth + part * (shown - truth)
    truth, shown = (((x - 0.5) * contrast + 0.5 + gain).clamp(0, 1) for x in (truth, shown))
    level = pool.level[which][:, None, None, None] * part * contrast
    guess = level * torch.exp(0.15 * torch.randn(BATCH, 1, 1, 1, generator=rng))
    return truth, guess.expand_as(truth), shown


def error_of(net: UNet, rng: torch.Generator, pool: Displays) -> torch.Tensor:
    """Return the error on a new batch."""
    truth, level, shown = draw_batch(pool, rng)
    return weighted_error(net(torch.cat([shown, level], 1))[0], truth, level, shown)


def golden_inputs() -> dict[str, tuple[np.ndarray]]:
    """Return plain inputs and displays with speckle, none of which a training step saw."""
    cases = plain_inputs([(1, 2, *GOLDEN_PX)])
    for (given,) in cases.values():
        given[:, 1] *= 0.1
    for number in range(4):
        rng = np.random.default_rng([SEED, HELD_OUT - 1, number])
        probe = draw_probe(rng)
        shown = show(rng, draw_tissue(rng, GOLDEN_PX[0]), probe)[0][:, : GOLDEN_PX[1]]
        level = np.full_like(shown, LOG_RAYLEIGH_DB / probe.range_db)
        cases[f"display_{number}"] = (np.stack([shown, level])[None],)
    return cases


def met(pool: Displays) -> Iterator[tuple[np.ndarray, float]]:
    """Give images as the stage would meet them, white at 1, with their levels."""
    yield from zip(pool.shown.numpy(), pool.level.tolist(), strict=True)


def draft_card(minutes: float) -> dict[str, Any]:
    """Return what there is to say of the model before it is measured."""
    return {
        "name": "us-despeckle",
        "version": "1",
        "what": "Names the speckle in a B-mode image: a U-Net of 520,000 weights on every second pixel.",
        "use": "research use only, not for diagnosis",
        "trained_on": f"{N_IMAGES} simulated displays: random scatterers through a pulse that widens with depth, "
        "walls, needles and shadows, on a logarithmic scale of 45 to 75 dB; half of the patches with part of their "
        "speckle, half shown smaller, half with other gain and contrast. No patient data.",
        "limits": [
            "Trained on simulated displays only; measured on the sets below and nothing else.",
            "Grains of 2 to 13 pixels; a display that was enlarged more has coarser ones, which look like structure.",
            "A machine that filters speckle already leaves another texture, on which it was never measured.",
            "Speckle that says something (its motion, its statistics) is gone: not before tracking or tissue typing.",
            "Where the gain drives the display into white, speckle stays: of a real spine phantom's frame it smooths "
            "the dim half only.",
            "Text and marks in the picture are taken for tissue.",
        ],
        "input": Input(
            name=INPUT,
            channels=("image", "speckle standard deviation"),
            scaling="grey levels divided by 255: white is 1",
            domain="us-log",
            smallest_px=16,
            typical_px=512,
            largest_px=1024,
            multiple_px=MULTIPLE_PX,
        ),
        "output": Output(name=NOISE, meaning="to be subtracted from the image, in the input's units"),
        "deadline_ms": 100.0,  # ten frames a second of 512 × 512 also where only f32 is left
        "training": Training(
            command="python -m training.us_despeckle",
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}, {STEPS} steps",
        ),
    }


def main() -> None:
    """Train, export, measure, write."""
    given = arguments(__doc__ or "")
    start = time.monotonic()
    pool = make_pool(N_IMAGES // 8 if given.reduced else N_IMAGES)
    steps = REDUCED_STEPS if given.reduced else STEPS
    net = train(UNet, partial(error_of, pool=pool), steps, LEARNING_RATE, SEED)
    draft = draft_card((time.monotonic() - start) / 60)
    measure = partial(validate_us, multiple_px=MULTIPLE_PX)
    write_model(given.folder, to_onnx(net, "us-despeckle"), draft, golden_inputs(), TOLERANCE, measure, met(pool))


if __name__ == "__main__":
    main()
