# SPDX-License-Identifier: Apache-2.0
"""What every inference engine looks like to the rest of the appliance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol

from appliance.errors import ModelError
from appliance.frames import Array

# What engines and their libraries raise: RuntimeError when a GPU is lost, MemoryError also for the device's memory, and
# the rest where a library is not of the version that was expected.
ENGINE_FAILURES = (
    ModelError,
    RuntimeError,
    MemoryError,
    OSError,
    ImportError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)

Precision = Literal["f32", "bf16"]
Shape = tuple[int, int, int, int]  # (batch, channel, y, x)


class Shapes(NamedTuple):
    """The sizes of one input that an engine is built for: least, the one to be fastest at, largest."""

    smallest: Shape
    typical: Shape
    largest: Shape


class Signature(NamedTuple):
    """What goes in and what comes out, by name, in the order of the ONNX graph."""

    inputs: Mapping[str, Shapes]
    outputs: tuple[str, ...]


class Session(Protocol):
    """One engine, ready. Use it from one thread at a time."""

    takes: Literal["host", "device"]  # where the arrays of `run` are
    engine_digest: str  # sha256 of the engine, or of what determines it where nothing is built

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Give new outputs for the inputs, both in the order of the signature, float32.

        Inputs are (batch, channel, y, x) and are not modified; outputs have any rank. Raises ModelError.
        """


class Backend(Protocol):
    """One way to run an ONNX model."""

    name: str
    on_gpu: bool

    def available(self, precision: Precision) -> str | None:
        """Say why this backend cannot serve here at this precision, or None when it can."""

    def fingerprint(self) -> str:
        """Name the versions and the hardware that an engine of this backend depends on."""

    def load(self, model: bytes, signature: Signature, precision: Precision) -> Session:
        """Build or load an engine at exactly this precision. Raises ModelError."""


def check_signature(
    where: str, inputs: Mapping[str, int | None], outputs: tuple[str, ...], signature: Signature
) -> None:
    """Compare what a graph has with its card. `inputs` gives channels, None where any number is taken.

    Raises ModelError.
    """
    expected = {name: shapes.typical[1] for name, shapes in signature.inputs.items()}
    for what, found, said in (
        ("inputs", tuple(inputs), tuple(expected)),
        ("outputs", outputs, signature.outputs),
    ):
        if found != said:
            raise ModelError(
                f"{where}: the model's {what} are {', '.join(found)}; the card says {', '.join(said)}; "
                "correct the card or restore the model file"
            )
    for name, channels in inputs.items():
        if channels not in (None, expected[name]):
            raise ModelError(
                f"{where}: input {name} has {channels} channels, the card says {expected[name]}; "
                "correct the card or restore the model file"
            )


def one_line(error: Exception) -> str:
    """Return the text of an engine's exception without its line breaks: alarms and the journal take one line."""
    return " ".join(str(error).split())


def shapes_of(arrays: tuple[Array, ...]) -> str:
    """Name the shapes of some arrays in an error text."""
    return ", ".join(str(array.shape) for array in arrays)
