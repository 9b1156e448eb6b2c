# SPDX-License-Identifier: Apache-2.0
"""Compile an ONNX model with TensorRT or TensorRT-RTX, in a process of its own.

A builder that crashes then takes no images with it. Its addresses are not randomised, where the system permits that:
the compiler numbers some of its expressions in the order of addresses, and only so is a rebuild bit by bit the same.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from appliance.errors import ModelError
from appliance.inference.backend import Shapes, Signature, check_signature
from appliance.inference.gpu import last_line

# The package `tensorrt_rtx` is only another name for this one, and has to be built from source.
MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx_bindings"}

_LONGEST_S = 1800.0
# personality(2) with ADDR_NO_RANDOMIZE counts from the next exec on. A real-time pipeline's child would be real-time,
# for minutes, and nobody else would get to run.
_START = """
import ctypes, os, sys
ctypes.CDLL(None).personality(0x0040000)
os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
os.nice(10)
os.execv(sys.executable, [sys.executable, "-P", "-m", "appliance.inference.build_engine", *sys.argv[1:]])
"""


def build_engine(name: str, model: bytes, signature: Signature, sm: str) -> bytes:
    """Compile `model` with "tensorrt" or "tensorrt_rtx" for GPUs of `sm` ("sm_86").

    TensorRT builds for the GPU that is here; TensorRT-RTX needs none. Raises ModelError.
    """
    with TemporaryDirectory(prefix="nearscan-engine-") as folder:
        (Path(folder) / "model.onnx").write_bytes(model)
        (Path(folder) / "signature.json").write_text(json.dumps(signature))
        command = [sys.executable, "-c", _START, name, sm, folder]
        try:
            child = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_LONGEST_S)
        except subprocess.TimeoutExpired as e:
            raise ModelError(f"{name}: no engine after {_LONGEST_S:.0f} s; build it with the appliance stopped") from e
        if child.returncode:
            raise ModelError(last_line(child.stderr, f"{name}: the builder ended with {child.returncode}; report this"))
        return (Path(folder) / "engine").read_bytes()


def compile_here(name: str, model: bytes, signature: Signature, sm: str) -> bytes:
    """Do what `build_engine` says, in this process. Raises ModelError."""
    trt = importlib.import_module(MODULES[name])
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"{name}: cannot read the model: {' '.join(reasons.split())}; restore the model file")
    found = [network.get_input(n) for n in range(network.num_inputs)]
    channels = {tensor.name: tensor.shape[1] if tensor.shape[1] >= 0 else None for tensor in found}
    outputs = tuple(network.get_output(n).name for n in range(network.num_outputs))
    check_signature(name, channels, outputs, signature)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if name == "tensorrt_rtx":
        _target(trt, config, sm)
    profile = builder.create_optimization_profile()
    for tensor, shapes in signature.inputs.items():
        profile.set_shape(tensor, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(f"{name}: cannot build an engine for {sm}; try another backend, and report the model")
    return bytes(engine)


def _target(trt: Any, config: Any, sm: str) -> None:
    known = trt.ComputeCapability.__members__
    wanted = sm.replace("_", "").upper()
    if not wanted.startswith("SM") or wanted not in known:
        listed = ", ".join(f"sm_{one.removeprefix('SM')}" for one in known if one.startswith("SM"))
        raise ModelError(f"tensorrt_rtx: builds for {listed}, not for {sm}; another backend serves that GPU")
    config.num_compute_capabilities = 1
    config.set_compute_capability(known[wanted], 0)


def _main(name: str, sm: str, folder: Path) -> None:
    kept: Any = json.loads((folder / "signature.json").read_text())
    inputs = {tensor: Shapes(*(tuple(shape) for shape in shapes)) for tensor, shapes in kept[0].items()}
    signature = Signature(inputs, tuple(kept[1]))
    try:
        (folder / "engine").write_bytes(compile_here(name, (folder / "model.onnx").read_bytes(), signature, sm))
    except ModelError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
