# SPDX-License-Identifier: Apache-2.0
"""What every inference engine looks like to the rest of the appliance."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from appliance.frames import Array

Precision = Literal["f32", "bf16"]
Shape = tuple[int, int, int, int]  # (batch, channel, y, x)


class Shapes(NamedTuple):
    """The image sizes an engine is built for: least, the one to be fastest at, largest."""

    smallest: Shape
    typical: Shape
    largest: Shape


class Session(Protocol):
    """One engine, ready. Use it from one thread at a time."""

    takes: Literal["host", "device"]  # where the arrays of `run` are
    engine_digest: str  # sha256 of the engine, or of what determines it where nothing is built

    def run(self, array: Array) -> Array:
        """Give the new output for `array`, float32 (batch, channel, y, x); `array` is not modified."""


class Backend(Protocol):
    """One way to run an ONNX model."""

    name: str
    on_gpu: bool

    def available(self, precision: Precision) -> str | None:
        """Say why this backend cannot serve here at this precision, or None when it can."""

    def fingerprint(self) -> str:
        """Name the versions and the hardware that an engine of this backend depends on."""

    def load(self, model: bytes, shapes: Shapes, precision: Precision) -> Session:
        """Build or load an engine at exactly this precision. Raises ModelError."""


def one_line(error: Exception) -> str:
    """Return the text of an engine's exception without its line breaks: alarms and the journal take one line."""
    return " ".join(str(error).split())
