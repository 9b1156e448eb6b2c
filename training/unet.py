# SPDX-License-Identifier: Apache-2.0
"""The network of every shipped denoiser, and its ONNX form from the same description.

A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) that works on every second pixel, as FFDNet does (Zhang, Zuo,
Zhang 2018, doi:10.1109/TIP.2018.2839891): its first convolution, 6 × 6 with stride 2, is a 3 × 3 on the 2 ×-unshuffled
input. Second channel in: the noise level. Out: the noise. No biases: scaling image and noise level scales the output
(Mohan et al. 2020, arXiv:1906.05478).

With a memory (add_up.py) it is given the mean of the frames so far where nothing changed, and that mean's noise level,
besides the frame itself.
"""

from __future__ import annotations

import itertools
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

from training.add_up import add_up
from training.operations import InOnnx, InTorch, Operations

WIDTHS = (32, 48, 64, 96)  # channels at 1/2, 1/4, 1/8, 1/16 of the size
MULTIPLE_PX = 2 ** len(WIDTHS)  # sides of an image must be multiples of this
_QUIET = 0.4  # what a block adds at first, so that signals stay of one size through all of them
INPUT, NOISE, MEMORY, NEXT_MEMORY = "image_and_noise_level", "noise", "memory", "next_memory"


def describe(f: Operations, x: Any, memory: Any = None) -> tuple[Any, ...]:
    """Return (noise,) or (noise, next memory) in terms of `f`."""
    if memory is None:
        return (_noise(f, x),)
    image, level = f.channel(x, 0), f.channel(x, 1)
    added = add_up(f, image, level, memory)
    left = _noise(f, f.join(added.mean, added.level, image, level))
    return f.add(f.subtract(image, added.mean), left), added.memory


def _noise(f: Operations, x: Any) -> Any:
    x = f.conv(x, "first", stride=2, pad=2)
    skipped = []
    for level in range(len(WIDTHS) - 1):
        x = _twice(f, x, f"down{level}")
        skipped.append(x)
        x = f.conv(x, f"shrink{level}", stride=2, pad=0)
    x = _twice(f, x, "bottom")
    for level in reversed(range(len(WIDTHS) - 1)):
        x = _twice(f, f.add(f.spread(x, f"grow{level}"), skipped[level]), f"up{level}")
    return f.shuffle(f.conv(x, "last"))


def _twice(f: Operations, x: Any, name: str) -> Any:
    """Two convolutions that add to what they are given, as He et al. 2016, arXiv:1512.03385."""
    return f.add(x, f.conv(f.relu(f.conv(x, f"{name}a")), f"{name}b"))


def _shapes(inputs: int) -> dict[str, tuple[int, ...]]:
    """Return each weight's shape, as both torch and ONNX have it."""
    w = WIDTHS
    shapes: dict[str, tuple[int, ...]] = {"first": (w[0], inputs, 6, 6), "last": (4, w[0], 3, 3)}
    for level, (wide, wider) in enumerate(itertools.pairwise(w)):
        for side in ("down", "up"):
            shapes |= {f"{side}{level}{part}": (wide, wide, 3, 3) for part in "ab"}
        shapes[f"shrink{level}"] = (wider, wide, 2, 2)
        shapes[f"grow{level}"] = (wider, wide, 2, 2)
    shapes |= {f"bottom{part}": (w[-1], w[-1], 3, 3) for part in "ab"}
    return shapes


class UNet(InTorch, nn.Module):
    """`remembers` False: single frames."""

    def __init__(self, remembers: bool = False) -> None:
        super().__init__()
        self.remembers = remembers
        shapes = _shapes(4 if remembers else 2)
        self.weights = nn.ParameterDict({n: torch.empty(s) for n, s in sorted(shapes.items())})
        for name, weight in self.weights.items():
            nn.init.kaiming_normal_(weight, nonlinearity="relu" if name.endswith("a") else "linear")
            if name.endswith("b"):
                weight.data *= _QUIET

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """(batch, 2, y, x) and memory (batch, 2, y, x) -> noise (batch, 1, y, x), next memory."""
        return describe(self, x, memory)


def to_onnx(net: UNet, name: str) -> bytes:
    """Return the network as ONNX with free y and x; written out by hand, so that no exporter changes it."""
    graph = InOnnx()
    made = describe(graph, INPUT, MEMORY if net.remembers else None)
    for value, output in zip(made, (NOISE, NEXT_MEMORY), strict=False):
        graph.nodes.append(helper.make_node("Identity", [value], [output]))
    inputs, outputs = [_value(INPUT, 2)], [_value(NOISE, 1)]
    if net.remembers:
        inputs.append(_value(MEMORY, 2))
        outputs.append(_value(NEXT_MEMORY, 2))
    weights = [numpy_helper.from_array(w.detach().float().numpy(), n) for n, w in net.weights.items()]
    weights += graph.constants
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def take_weights(net: UNet, model: bytes) -> None:
    """Copy into `net` the weights that an ONNX of `to_onnx` has. Of a model for single frames, `net` treats the mean of
    the frames as that did an image, and takes no notice of the frame itself at first."""
    found = {w.name: numpy_helper.to_array(w) for w in onnx.load_model_from_string(model).graph.initializer}
    with torch.no_grad():
        for name, weight in net.weights.items():
            weight.zero_()
            weight[:, : found[name].shape[1]].copy_(torch.from_numpy(found[name].copy()))


def _value(name: str, channels: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, "y", "x"])
