# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-denoise: `python -m training.mr_denoise --series T1.tar.xz`, about 15 minutes on one core.

Writes the ONNX file, the golden input and output, and the card with measured figures. Seeds and the number of steps
are fixed, one thread: the same machine and library versions give the same file.

The network is FFDNet's idea made small: six convolutions of 16 channels on every second pixel (the first one, 6 × 6
with stride 2, is a 3 × 3 on the 2 ×-unshuffled input), the noise level as second channel, the noise as output.
No biases: scaling image and noise level scales the output (Mohan et al. 2020, arXiv:1906.05478).
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import onnx
import torch
import yaml
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import nn

from appliance.inference.card import Card, Golden, Input, Output, Training
from appliance.inference.golden import plain_inputs, write_golden
from appliance.inference.onnxruntime import OnnxRuntime
from operators.stages.denoise import MOST_SIGMA
from training.dead_leaves import dead_leaves
from training.validate_denoise import rician, validate_denoise

SEED = 1
GOLDEN_PX = (96, 80)
N_IMAGES, IMAGE_PX = 200, 256
BATCH, PATCH_PX = 16, 64
STEPS = 20_000
LEARNING_RATE = 5e-3
EMA = 0.999
LARGEST_SIGMA = 0.15  # of the brightest tissue
WIDTH, DEPTH = 16, 6
TOLERANCE = {"f32": 2e-5, "bf16": 2e-2}  # of brightest tissue 1; f32: order of summation, bf16: 8 bits of mantissa


def network() -> nn.Sequential:
    """Return the untrained network: (image, noise level) (batch, 2, y, x) -> noise (batch, 1, y, x)."""
    layers: list[nn.Module] = [nn.Conv2d(2, WIDTH, 6, stride=2, padding=2, bias=False), nn.ReLU()]
    for _ in range(DEPTH - 2):
        layers += [nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.ReLU()]
    layers += [nn.Conv2d(WIDTH, 4, 3, padding=1, bias=False), nn.PixelShuffle(2)]
    net = nn.Sequential(*layers)
    for parameter in net.parameters():
        nn.init.kaiming_normal_(parameter)
    return net


def draw_batch(pool: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return noise-free patches, their noise level (half of them varying in space), and the noisy patches."""
    which = torch.randint(0, len(pool), (BATCH,), generator=rng).tolist()
    corners = torch.randint(0, IMAGE_PX - PATCH_PX + 1, (BATCH, 2), generator=rng).tolist()
    patches = [pool[i, y : y + PATCH_PX, x : x + PATCH_PX] for i, (y, x) in zip(which, corners, strict=True)]
    truth = torch.stack(patches)[:, None]
    if torch.rand((), generator=rng) < 0.5:
        truth = truth.transpose(2, 3)
    if torch.rand((), generator=rng) < 0.5:
        truth = truth.flip(3)
    truth = truth * (0.1 + 1.1 * torch.rand(BATCH, 1, 1, 1, generator=rng))
    varies = 0.3 * (torch.rand(BATCH, 1, 1, 1, generator=rng) < 0.5)
    field = torch.randn(BATCH, 1, 3, 3, generator=rng) * varies
    field = nn.functional.interpolate(field, (PATCH_PX, PATCH_PX), mode="bilinear", align_corners=True)
    level = LARGEST_SIGMA * torch.rand(BATCH, 1, 1, 1, generator=rng) ** 1.5 * torch.exp(field)
    real, imaginary = level * torch.randn(2, *truth.shape, generator=rng)
    return truth, level, torch.hypot(truth + real, imaginary)


def weighted_error(net: nn.Module, truth: torch.Tensor, level: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Return the squared error after subtraction, weighted so that low noise counts too."""
    noise = net(torch.cat([noisy, level], 1))
    noise = torch.maximum(torch.minimum(noise, MOST_SIGMA * level), -MOST_SIGMA * level)
    mean_level = level.mean((1, 2, 3), keepdim=True)
    return ((noisy - noise - truth) ** 2 / (mean_level + 0.02) ** 1.5).mean()


def train(pool: torch.Tensor) -> nn.Module:
    """Return the exponential moving average of the trained network."""
    net = network()
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    optimiser = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS, pct_start=0.05)
    rng = torch.Generator().manual_seed(SEED)
    for step in range(STEPS):
        loss = weighted_error(net, *draw_batch(pool, rng))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(net)
        if step % 1000 == 0:
            print(f"step {step} of {STEPS}: loss {loss.item():.4f}", flush=True)
    return average.module.eval()


def to_onnx(net: nn.Module) -> bytes:
    """Return the network as ONNX with free even y and x; written out by hand, so that no exporter changes it."""
    weights = [p.detach().numpy() for p in net.parameters()]
    nodes, last = [], "image_and_noise_level"
    for i in range(len(weights)):
        strides, pad = ([2, 2], 2) if i == 0 else ([1, 1], 1)
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], strides=strides, pads=[pad] * 4))
        last = f"c{i}"
        if i < len(weights) - 1:
            nodes.append(helper.make_node("Relu", [last], [f"r{i}"]))
            last = f"r{i}"
    nodes.append(helper.make_node("DepthToSpace", [last], ["noise"], blocksize=2, mode="CRD"))
    graph = helper.make_graph(
        nodes,
        "mr-denoise",
        [helper.make_tensor_value_info("image_and_noise_level", onnx.TensorProto.FLOAT, [1, 2, "y", "x"])],
        [helper.make_tensor_value_info("noise", onnx.TensorProto.FLOAT, [1, 1, "y", "x"])],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def golden_inputs() -> dict[str, tuple[NDArray[np.float32]]]:
    """Return plain inputs and noisy images over the whole range of levels, none of which a training step saw."""
    cases = plain_inputs([(1, 2, *GOLDEN_PX)])
    for (given,) in cases.values():
        given[:, 1] *= LARGEST_SIGMA  # a level outside its range says nothing of an engine
    for percent in (0, 1, 2, 5, 10, 15):
        rng = np.random.default_rng([SEED, N_IMAGES, percent])
        image = rician(rng, dead_leaves(rng, GOLDEN_PX[0])[:, : GOLDEN_PX[1]], percent / 100)
        cases[f"sigma_{percent:02}"] = (np.stack([image, np.full_like(image, percent / 100)])[None],)
    return cases


def write_card(folder: Path, minutes: float, series: Path | None) -> Card:
    """Measure the exported model and write its card."""
    onnx_bytes = (folder / "mr-denoise.onnx").read_bytes()
    draft = {
        "name": "mr-denoise",
        "version": "1",
        "what": "Names the noise in a magnitude MR image: six convolutions of 16 channels, 11,000 weights.",
        "use": "research use only, not for diagnosis",
        "trained_on": f"{N_IMAGES} simulated dead-leaves images with Rician noise of 0 to 15 % of the brightest "
        "tissue, half of them with a level that varies in space. No patient data.",
        "limits": [
            "Trained on simulated images only; measured on the sets below and nothing else.",
            "White Rician noise: images that were filtered or interpolated after their noise arose carry correlated "
            "noise, which it takes for structure and leaves in.",
            "Contrast below the noise level is smoothed away together with the noise.",
            "Where no noise map is given, the level is estimated, and fine structure counts as noise: with 0.5 % noise "
            "added to the T1 head above, 46.1 dB became 43.7 dB (46.4 dB with the known level).",
            "Not for CT or ultrasound.",
        ],
        "file": "mr-denoise.onnx",
        "sha256": hashlib.sha256(onnx_bytes).hexdigest(),
        "input": Input(
            name="image_and_noise_level",
            channels=("image", "noise standard deviation"),
            scaling="both divided by the same number, which brings the brightest tissue to about 1; even sizes",
            smallest_px=16,
            typical_px=256,
            largest_px=1024,
            multiple_px=2,
        ),
        "output": Output(name="noise", meaning="to be subtracted from the image, in the input's units"),
        "deadline_ms": 50.0,  # 20 frames a second; an old machine keeps that
        "training": Training(
            command="python -m training.mr_denoise --series mr_t1_siemens_HFS.tar.xz",
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}, {STEPS} steps",
        ),
    }
    signature = Card.model_construct(**draft).signature
    session = OnnxRuntime().load(onnx_bytes, signature, "f32")
    golden = Golden(
        file="mr-denoise.golden.npz",
        sha256=write_golden(folder / "mr-denoise.golden.npz", onnx_bytes, signature, golden_inputs()),
        tolerance=TOLERANCE,
    )
    card = Card(**draft, golden=golden, validated_on=validate_denoise(session.run, series))
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (folder / "mr-denoise.yaml").write_text(text)
    return card


def main() -> None:
    """Train, export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=Path, help="tar archive of a DICOM series to measure on, besides the phantom")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="where the files go")
    given = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    pool = np.stack([dead_leaves(np.random.default_rng([SEED, i]), IMAGE_PX) for i in range(N_IMAGES)])
    net = train(torch.from_numpy(pool))
    (given.folder / "mr-denoise.onnx").write_bytes(to_onnx(net))
    card = write_card(given.folder, (time.monotonic() - start) / 60, given.series)
    for row in card.validated_on:
        print(f"{row.data}, {row.noise_percent} %: {row.noisy_db} -> {row.model_db} dB, peer {row.other_db} dB")


if __name__ == "__main__":
    main()
