# SPDX-License-Identifier: Apache-2.0
"""The operations that networks are described in, once for training (torch) and once for what is shipped (ONNX)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional


class Operations(Protocol):
    """Values are tensors of torch, or names of values in an ONNX graph, (batch, channel, y, x)."""

    def conv(self, x: Any, name: str, stride: int = 1, pad: int = 1) -> Any: ...
    def spread(self, x: Any, name: str) -> Any:
        """Transposed convolution, 2 x 2 with stride 2."""

    def relu(self, x: Any) -> Any: ...
    def shuffle(self, x: Any) -> Any:
        """Four channels to 2 x 2 pixels."""

    def add(self, x: Any, y: Any) -> Any: ...
    def subtract(self, x: Any, y: Any) -> Any: ...
    def multiply(self, x: Any, y: Any) -> Any: ...
    def divide(self, x: Any, y: Any) -> Any: ...
    def smaller(self, x: Any, y: Any) -> Any: ...
    def root(self, x: Any) -> Any: ...
    def line(self, x: Any, slope: float, offset: float) -> Any:
        """`slope` x + `offset`."""

    def clip(self, x: Any, low: float, high: float) -> Any: ...
    def channel(self, x: Any, number: int) -> Any: ...
    def join(self, *parts: Any) -> Any:
        """Channels of all parts, one after the other."""

    def halve(self, x: Any) -> Any:
        """Means of 2 x 2 pixels."""

    def neighbours(self, x: Any) -> Any:
        """Means over 3 x 3 pixels; less at the edge."""

    def double(self, x: Any) -> Any:
        """Twice as many pixels, linear in between."""


class InTorch:
    """`weights` by name."""

    weights: Mapping[str, torch.Tensor]

    def conv(self, x: torch.Tensor, name: str, stride: int = 1, pad: int = 1) -> torch.Tensor:
        return functional.conv2d(x, self.weights[name], stride=stride, padding=pad)

    def spread(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.conv_transpose2d(x, self.weights[name], stride=2)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x)

    def shuffle(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pixel_shuffle(x, 2)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def subtract(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - y

    def multiply(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * y

    def divide(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x / y

    def smaller(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.minimum(x, y)

    def root(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sqrt(x)

    def line(self, x: torch.Tensor, slope: float, offset: float) -> torch.Tensor:
        return x * slope + offset

    def clip(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return x.clamp(low, high)

    def channel(self, x: torch.Tensor, number: int) -> torch.Tensor:
        return x[:, number : number + 1]

    def join(self, *parts: torch.Tensor) -> torch.Tensor:
        return torch.cat(parts, 1)

    def halve(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 2)

    def neighbours(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def double(self, x: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class InOnnx:
    """Collects nodes and constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _constant(self, *values: float, dtype: type = np.float32, scalar: bool = True) -> str:
        name = f"c{len(self.constants)}"
        array = np.array(values[0] if scalar else values, dtype)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, name: str, stride: int = 1, pad: int = 1) -> str:
        return self._node("Conv", x, name, strides=[stride] * 2, pads=[pad] * 4)

    def spread(self, x: str, name: str) -> str:
        return self._node("ConvTranspose", x, name, strides=[2, 2])

    def relu(self, x: str) -> str:
        return self._node("Relu", x)

    def shuffle(self, x: str) -> str:
        return self._node("DepthToSpace", x, blocksize=2, mode="CRD")

    def add(self, x: str, y: str) -> str:
        return self._node("Add", x, y)

    def subtract(self, x: str, y: str) -> str:
        return self._node("Sub", x, y)

    def multiply(self, x: str, y: str) -> str:
        return self._node("Mul", x, y)

    def divide(self, x: str, y: str) -> str:
        return self._node("Div", x, y)

    def smaller(self, x: str, y: str) -> str:
        return self._node("Min", x, y)

    def root(self, x: str) -> str:
        return self._node("Sqrt", x)

    def line(self, x: str, slope: float, offset: float) -> str:
        scaled = x if slope == 1 else self._node("Mul", x, self._constant(slope))
        return scaled if offset == 0 else self._node("Add", scaled, self._constant(offset))

    def clip(self, x: str, low: float, high: float) -> str:
        return self._node("Clip", x, self._constant(low), self._constant(high))

    def channel(self, x: str, number: int) -> str:
        starts, ends, axes = (self._constant(n, dtype=np.int64, scalar=False) for n in (number, number + 1, 1))
        return self._node("Slice", x, starts, ends, axes)

    def join(self, *parts: str) -> str:
        return self._node("Concat", *parts, axis=1)

    def halve(self, x: str) -> str:
        return self._node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])

    def neighbours(self, x: str) -> str:
        return self._node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=0)

    def double(self, x: str) -> str:
        scales = self._constant(1, 1, 2, 2, scalar=False)
        return self._node("Resize", x, "", scales, mode="linear", coordinate_transformation_mode="half_pixel")
