# SPDX-License-Identifier: Apache-2.0
"""Golden files: what a model gave at training for inputs that show where engines differ.

A file is a numpy archive of float32 arrays NAME.input0, NAME.input1 …, NAME.output0 …; the reference is ONNX Runtime
in float32 on a CPU.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.errors import ModelError
from appliance.inference.backend import Shape, Signature
from appliance.inference.onnxruntime import OnnxRuntime

Image = NDArray[np.float32]
Arrays = tuple[Image, ...]

# What numpy and zipfile raise for a damaged archive; RuntimeError: encrypted, or compressed by a method unknown here.
_DAMAGED = (ValueError, OSError, EOFError, LookupError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_KEY = re.compile(r"(?P<case>[A-Za-z0-9_-]+)\.(?P<kind>input|output)(?P<number>\d)")


class Case(NamedTuple):
    """One named pair of inputs and outputs, in the order of the ONNX graph."""

    name: str
    inputs: Arrays
    outputs: Arrays


def plain_inputs(shapes: Sequence[Shape], seed: int = 1) -> dict[str, Arrays]:
    """Return the inputs that every golden file has: noise, zeros, ones and a checkerboard, for each input's shape."""
    rng = np.random.default_rng(seed)
    return {
        "noise": tuple(rng.random(shape, np.float32) for shape in shapes),
        "zeros": tuple(np.zeros(shape, np.float32) for shape in shapes),
        "ones": tuple(np.ones(shape, np.float32) for shape in shapes),
        "checkerboard": tuple((np.indices(shape).sum(0) % 2).astype(np.float32) for shape in shapes),
    }


def write_golden(path: Path, model: bytes, signature: Signature, inputs: Mapping[str, Sequence[Image]]) -> str:
    """Run `inputs` (by case name) through the ONNX `model` on the reference, keep both; return the file's sha256.

    Raises ModelError.
    """
    session = OnnxRuntime().load(model, signature, "f32")
    kept: dict[str, Any] = {}
    for case, arrays in inputs.items():
        outputs = session.run(*arrays)
        kept |= {f"{case}.input{n}": array for n, array in enumerate(arrays)}
        kept |= {f"{case}.output{n}": array for n, array in enumerate(outputs)}
    np.savez_compressed(path, **kept)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_golden(content: bytes) -> tuple[Case, ...]:
    """Return the cases of a golden file. Raises ModelError."""
    cases: dict[str, dict[str, list[Image]]] = {}
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for key in sorted(arrays):
                if not (match := _KEY.fullmatch(key)):
                    raise ModelError(f"array {key!r} is not named CASE.inputN or CASE.outputN; write it again")
                case = cases.setdefault(match["case"], {"input": [], "output": []})
                if (array := arrays[key]).dtype != np.float32:
                    raise ModelError(f"array {key!r} is {array.dtype}, not float32; write it again")
                case[match["kind"]].append(array)
    except _DAMAGED as e:
        raise ModelError("not an archive of golden cases; restore the file") from e
    found = tuple(Case(name, tuple(case["input"]), tuple(case["output"])) for name, case in cases.items())
    if not found or not all(case.inputs and case.outputs for case in found):
        raise ModelError("a case without inputs or outputs, or no case at all; write it again")
    return found
