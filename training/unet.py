# SPDX-License-Identifier: Apache-2.0
"""The network of every shipped denoiser, and its ONNX form from the same description.

A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) that works on every second pixel, as FFDNet does (Zhang, Zuo,
Zhang 2018, doi:10.1109/TIP.2018.2839891): its first convolution, 6 × 6 with stride 2, is a 3 × 3 on the 2 ×-unshuffled
input. Second channel in: the noise level. Out: the noise. No biases: scaling image and noise level scales the output
(Mohan et al. 2020, arXiv:1906.05478).

With `memory` it takes part of its own features of the frame before as second input and gives those of this frame
as second output: where nothing moves, frames add up.
"""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

WIDTHS = (32, 48, 64, 96)  # channels at 1/2, 1/4, 1/8, 1/16 of the size: 25 ms at 512 × 512 in bf16 on two cores
MULTIPLE_PX = 2 ** len(WIDTHS)  # sides of an image must be multiples of this
INPUT, NOISE, MEMORY, NEXT_MEMORY = "image_and_noise_level", "noise", "memory", "next_memory"


class Operations(Protocol):
    """What the description below is written in: tensors of torch, or names of values in an ONNX graph."""

    def conv(self, x: Any, name: str, stride: int = 1, pad: int = 1) -> Any: ...
    def spread(self, x: Any, name: str) -> Any: ...
    def relu(self, x: Any) -> Any: ...
    def add(self, x: Any, y: Any) -> Any: ...
    def shuffle(self, x: Any) -> Any: ...


def describe(f: Operations, x: Any, memory: Any = None) -> tuple[Any, ...]:
    """Return (noise,) or (noise, next memory) in terms of `f`."""
    x = f.conv(x, "first", stride=2, pad=2)
    if memory is not None:
        x = f.add(x, f.conv(memory, "recall"))
    x = f.relu(x)
    skipped = []
    for level in range(len(WIDTHS) - 1):
        x = _twice(f, x, f"down{level}")
        skipped.append(x)
        x = f.relu(f.conv(x, f"shrink{level}", stride=2, pad=0))
    x = _twice(f, x, "bottom")
    for level in reversed(range(len(WIDTHS) - 1)):
        x = _twice(f, f.add(f.spread(x, f"grow{level}"), skipped[level]), f"up{level}")
    noise = f.shuffle(f.conv(x, "last"))
    return (noise,) if memory is None else (noise, f.relu(f.conv(x, "remember")))


def _twice(f: Operations, x: Any, name: str) -> Any:
    return f.relu(f.conv(f.relu(f.conv(x, f"{name}a")), f"{name}b"))


def _shapes(memory_channels: int) -> dict[str, tuple[int, ...]]:
    """Return each weight's shape, as both torch and ONNX have it."""
    w = WIDTHS
    shapes: dict[str, tuple[int, ...]] = {"first": (w[0], 2, 6, 6), "last": (4, w[0], 3, 3)}
    for level, (wide, wider) in enumerate(itertools.pairwise(w)):
        for side in ("down", "up"):
            shapes |= {f"{side}{level}{part}": (wide, wide, 3, 3) for part in "ab"}
        shapes[f"shrink{level}"] = (wider, wide, 2, 2)
        shapes[f"grow{level}"] = (wider, wide, 2, 2)
    shapes |= {f"bottom{part}": (w[-1], w[-1], 3, 3) for part in "ab"}
    if memory_channels:
        shapes |= {"recall": (w[0], memory_channels, 3, 3), "remember": (memory_channels, w[0], 3, 3)}
    return shapes


class UNet(nn.Module):
    """`memory_channels` 0: single frames."""

    def __init__(self, memory_channels: int = 0) -> None:
        super().__init__()
        self.memory_channels = memory_channels
        self.weights = nn.ParameterDict({n: torch.empty(s) for n, s in sorted(_shapes(memory_channels).items())})
        for weight in self.weights.values():
            nn.init.kaiming_normal_(weight)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """(batch, 2, y, x) and memory (batch, memory_channels, y / 2, x / 2) -> noise (batch, 1, y, x), next memory."""
        return describe(self, x, memory)

    def conv(self, x: torch.Tensor, name: str, stride: int = 1, pad: int = 1) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weights[name], stride=stride, padding=pad)

    def spread(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return nn.functional.conv_transpose2d(x, self.weights[name], stride=2)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(x, 2)


class _Graph:
    """Collects ONNX nodes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def _add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def conv(self, x: str, name: str, stride: int = 1, pad: int = 1) -> str:
        return self._add("Conv", [x, name], strides=[stride] * 2, pads=[pad] * 4)

    def spread(self, x: str, name: str) -> str:
        return self._add("ConvTranspose", [x, name], strides=[2, 2])

    def relu(self, x: str) -> str:
        return self._add("Relu", [x])

    def add(self, x: str, y: str) -> str:
        return self._add("Add", [x, y])

    def shuffle(self, x: str) -> str:
        return self._add("DepthToSpace", [x], blocksize=2, mode="CRD")


def to_onnx(net: UNet, name: str) -> bytes:
    """Return the network as ONNX with free y and x; written out by hand, so that no exporter changes it."""
    graph, has_memory = _Graph(), net.memory_channels > 0
    made = describe(graph, INPUT, MEMORY if has_memory else None)
    for value, output in zip(made, (NOISE, NEXT_MEMORY), strict=False):
        graph.nodes.append(helper.make_node("Identity", [value], [output]))
    inputs, outputs = [_value(INPUT, 2)], [_value(NOISE, 1)]
    if has_memory:
        inputs.append(_value(MEMORY, net.memory_channels, "half_"))
        outputs.append(_value(NEXT_MEMORY, net.memory_channels, "half_"))
    weights = [numpy_helper.from_array(w.detach().float().numpy(), n) for n, w in net.weights.items()]
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, inputs, outputs, weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def take_weights(net: UNet, model: bytes) -> None:
    """Copy into `net` the weights that an ONNX of `to_onnx` has; what recalls the memory starts at zero."""
    found = {w.name: numpy_helper.to_array(w) for w in onnx.load_model_from_string(model).graph.initializer}
    with torch.no_grad():
        for name, weight in net.weights.items():
            if name in found:
                weight.copy_(torch.from_numpy(found[name].copy()))
            elif name == "recall":
                weight.zero_()


def _value(name: str, channels: int, prefix: str = "") -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, f"{prefix}y", f"{prefix}x"])
