# SPDX-License-Identifier: Apache-2.0
"""Train models/mr-faults: `python -m training.mr_faults`, about 8 minutes on one core; `--reduced` in one minute.

Writes the ONNX file, the golden file, and the card with figures measured on held-out anatomy and settings. Seeds and
the number of steps are fixed, one thread: the same machine and library versions give the same file.

Two branches of four convolutions, one for the image and one for k-space, their means and maxima over all pixels, and
two dense layers: each fault has an output of its own, and clean frames none.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

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
from appliance.mri.fault_features import N_CHANNELS, SIZE_PX, fault_features
from training.fault_scenes import CLASSES, held_out_scene, samples, trained_scene
from training.simulate_faults import acquire
from training.validate_faults import validate_faults

SEED = 1
N_SCENES, N_PER_SCENE = 400, 12
REDUCED_SCENES = 50
BATCH, EPOCHS = 32, 16
LEARNING_RATE = 3e-3
WIDTHS = (8, 16, 24, 24)
CHANNELS = ((0, 2), (2, 5))  # of the image branch, of the k-space branch
HIDDEN = 32
TOLERANCE = {"f32": 1e-4, "bf16": 0.1}  # of logits of about 10; f32: order of summation, bf16: 8 bits of mantissa


class Network(nn.Module):
    """What `fault_features` gives, (batch, channel, y, x), -> logits (batch, class)."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_branch(last - first) for first, last in CHANNELS])
        self.dense = nn.ModuleList([nn.Linear(4 * WIDTHS[-1], HIDDEN), nn.Linear(HIDDEN, len(CLASSES))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each branch sees its channels."""
        seen = [branch(x[:, first:last]) for branch, (first, last) in zip(self.branches, CHANNELS, strict=True)]
        pooled = torch.cat([pool for y in seen for pool in (y.mean((2, 3)), y.amax((2, 3)))], 1)
        return self.dense[1](self.dense[0](pooled).relu())


def _branch(before: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, width in enumerate(WIDTHS):
        size, pad = (5, 2) if i == 0 else (3, 1)
        layers += [nn.Conv2d(before, width, size, stride=2, padding=pad), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-2].weight)
        before = width
    return nn.Sequential(*layers)


def dataset(n_scenes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features, float16 (sample, channel, y, x), and labels (sample, class)."""
    parts = []
    for number in range(n_scenes):
        parts.append(samples(trained_scene(SEED, number), np.random.default_rng([SEED, number, 1]), N_PER_SCENE))
        if number % 50 == 49:
            print(f"{number + 1} of {n_scenes} scenes", flush=True)
    features, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return torch.from_numpy(features), torch.from_numpy(labels)


def train(features: torch.Tensor, labels: torch.Tensor, epochs: int) -> Network:
    """Return the trained network."""
    torch.manual_seed(SEED)
    net = Network()
    steps = epochs * (len(features) // BATCH)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    rng = torch.Generator().manual_seed(SEED)
    for epoch in range(epochs):
        order = torch.randperm(len(features), generator=rng)
        total = 0.0
        for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            loss = nn.functional.binary_cross_entropy_with_logits(net(_varied(features[batch], rng)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: loss {total / (len(order) // BATCH):.4f}", flush=True)
    return net.eval()


def _varied(x: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Mirror along x (k-space with it), and change the level of the image a little."""
    x = x.float()
    if torch.rand((), generator=rng) < 0.5:
        x = x.flip(3)
    x[:, :2] += 0.1 * torch.randn(len(x), 1, 1, 1, generator=rng)
    return x


def to_onnx(net: Network) -> bytes:
    """Return the network as ONNX; written out by hand, so that no exporter changes it."""
    weights = {name.replace(".", "_"): p.detach().numpy() for name, p in net.named_parameters()}
    nodes = [helper.make_node("Split", ["image_and_kspace", "channels"], ["x0", "x1"], axis=1)]
    pooled = []
    for branch in range(2):
        last = f"x{branch}"
        for i in range(len(WIDTHS)):
            name, pad = f"branches_{branch}_{2 * i}", 2 if i == 0 else 1
            given = [last, f"{name}_weight", f"{name}_bias"]
            nodes.append(helper.make_node("Conv", given, [f"{name}_c"], strides=[2, 2], pads=[pad] * 4))
            nodes.append(helper.make_node("Relu", [f"{name}_c"], [f"{name}_r"]))
            last = f"{name}_r"
        for pool in ("Average", "Max"):
            pooled.append(f"{pool}{branch}")
            nodes.append(helper.make_node(f"Global{pool}Pool", [last], [pooled[-1]]))
    nodes += [
        helper.make_node("Concat", pooled, ["pooled"], axis=1),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense_0_weight", "dense_0_bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "dense_1_weight", "dense_1_bias"], ["logits"], transB=1),
    ]
    weights["channels"] = np.array([last - first for first, last in CHANNELS])
    shape = [1, N_CHANNELS, SIZE_PX, SIZE_PX]
    graph = helper.make_graph(
        nodes,
        "mr-faults",
        [helper.make_tensor_value_info("image_and_kspace", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, len(CLASSES)])],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def golden_inputs() -> dict[str, tuple[NDArray[np.float32]]]:
    """Return plain inputs, and one frame of each kind that no training step saw."""
    cases = plain_inputs([(1, N_CHANNELS, SIZE_PX, SIZE_PX)])
    scene, rng = held_out_scene(SEED, 999), np.random.default_rng(SEED)
    for fault in ("", *CLASSES):
        acquired = acquire(scene, rng, fault)
        cases[fault or "clean"] = (fault_features(acquired.image, acquired.kspace),)
    return cases


def write_card(folder: Path, minutes: float, onnx_bytes: bytes, reduced: bool) -> Card:
    """Measure the exported model and write its card."""
    n_weights = sum(int(np.prod(tensor.dims)) for tensor in onnx.load_model_from_string(onnx_bytes).graph.initializer)
    n_scenes = REDUCED_SCENES if reduced else N_SCENES
    draft: dict[str, Any] = {
        "name": "mr-faults",
        "version": "1",
        "what": f"Names {len(CLASSES)} faults of an MRI acquisition from the image and log k-space: two branches of "
        f"four convolutions, {n_weights} weights. Detects these faults: {', '.join(CLASSES)}.",
        "use": "research use only, not for diagnosis",
        "trained_on": f"{n_scenes * N_PER_SCENE} simulated frames of {n_scenes} scenes, with one fault or none: "
        "bodies of dead leaves or ellipses in rings of 5, 8 or 12 coils, acceleration 1 to 3. No patient data.",
        "limits": [
            "A fault that it was not trained on may pass as clean; how often was not measured.",
            "Simulated motion is a rigid shift or turn in the plane, in the order of lines; nothing else was tried.",
            "Thresholds on its output are set by the site's commissioning; before that they are conservative.",
            "Cartesian k-space of one slice, phase direction along y. Not for CT or ultrasound.",
        ],
        "file": "mr-faults.onnx",
        "sha256": hashlib.sha256(onnx_bytes).hexdigest(),
        "input": Input(
            name="image_and_kspace",
            channels=(
                "log image",
                "log image half a field of view away",
                "log k-space",
                "real part of how lines follow from each other",
                "imaginary part",
            ),
            scaling="appliance/mri/fault_features.py",
            smallest_px=SIZE_PX,
            typical_px=SIZE_PX,
            largest_px=SIZE_PX,
        ),
        "output": Output(name="logits", meaning="log odds of " + ", ".join(CLASSES)),
        "deadline_ms": 10.0,
        "training": Training(
            command="python -m training.mr_faults" + (" --reduced" if reduced else ""),
            time=f"{minutes:.0f} minutes on one core of an AMD EPYC, shared; seed {SEED}",
        ),
    }
    signature = Card.model_construct(**draft).signature
    session = OnnxRuntime().load(onnx_bytes, signature, "f32")
    golden = Golden(
        file="mr-faults.golden.npz",
        sha256=write_golden(folder / "mr-faults.golden.npz", onnx_bytes, signature, golden_inputs()),
        tolerance=TOLERANCE,
    )
    card = Card(**draft, golden=golden, validated_on=validate_faults(lambda x: session.run(x)[0]))
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
    (folder / "mr-faults.yaml").write_text(text)
    return card


def main() -> None:
    """Train, export, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("models"), help="where the files go")
    parser.add_argument("--reduced", action="store_true", help="a fifth of the frames: shows that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    start = time.monotonic()
    features, labels = dataset(REDUCED_SCENES if given.reduced else N_SCENES)
    net = train(features, labels, EPOCHS)
    onnx_bytes = to_onnx(net)
    (given.folder / "mr-faults.onnx").write_bytes(onnx_bytes)
    card = write_card(given.folder, (time.monotonic() - start) / 60, onnx_bytes, given.reduced)
    for row in card.validated_on:
        print(row)


if __name__ == "__main__":
    main()
