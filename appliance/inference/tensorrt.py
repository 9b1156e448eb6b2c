# SPDX-License-Identifier: Apache-2.0
"""TensorRT 11 and TensorRT-RTX: nearly one API, so one class with the module as a parameter.

Networks are strongly typed: the ONNX file decides every precision; TF32 is cleared, or "f32" would not be f32.
"""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Precision, Signature, check_signature, shapes_of
from appliance.inference.engine_cache import cached_engine
from appliance.inference.gpu import ask_child, find_gpu


@cache
def _probe(module: str) -> tuple[str, str | None]:
    """Create its Runtime in a child process: without a working driver that call may end the process."""
    return ask_child(f"import {module} as t; t.Runtime(t.Logger(t.Logger.ERROR)); print(t.__version__)")


class _Session:
    takes: Literal["host", "device"] = "device"

    def __init__(self, trt: Any, engine: bytes, signature: Signature) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise ModelError(f"{trt.__name__}: this GPU refuses the engine; see the list of GPUs it supports")
        self._context = self._engine.create_execution_context()
        self._inputs, self._outputs = tuple(signature.inputs), signature.outputs
        self.engine_digest = hashlib.sha256(engine).hexdigest()

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        import cupy

        arrays = tuple(cupy.ascontiguousarray(array, dtype=cupy.float32) for array in arrays)
        for name, array in zip(self._inputs, arrays, strict=True):
            if not self._context.set_input_shape(name, array.shape):
                raise ModelError(f"tensorrt: no profile takes shape {array.shape}; see the card's image sizes")
            self._context.set_tensor_address(name, array.data.ptr)
        outputs = []
        for name in self._outputs:
            outputs.append(cupy.empty(tuple(self._context.get_tensor_shape(name)), cupy.float32))
            self._context.set_tensor_address(name, outputs[-1].data.ptr)
        if not self._context.execute_async_v3(cupy.cuda.get_current_stream().ptr):
            raise ModelError(f"tensorrt: run failed for shape {shapes_of(arrays)}; see the GPU's kernel log")
        return tuple(outputs)


class TensorRT:
    """`module` is "tensorrt" or "tensorrt_rtx"; `cache` is the folder of built engines."""

    on_gpu = True

    def __init__(self, module: Literal["tensorrt", "tensorrt_rtx"], cache: Path) -> None:
        self.name: str = module
        self._cache = cache

    def available(self, precision: Precision) -> str | None:
        if precision != "f32":
            return f"{self.name} takes its precision from the model file, which is f32"
        gpu = find_gpu()
        if isinstance(gpu, str):
            return gpu
        failure = _probe(self.name)[1]
        return f"{self.name}: {failure}" if failure else None

    def fingerprint(self) -> str:
        return f"{self.name} {_probe(self.name)[0]} on {find_gpu()}, tf32 off"

    def load(self, model: bytes, signature: Signature, precision: Precision) -> _Session:
        trt = importlib.import_module(self.name)
        key = f"{hashlib.sha256(model).hexdigest()} {self.fingerprint()} {precision} {signature}"
        return _Session(trt, cached_engine(self._cache, key, lambda: build_engine(trt, model, signature)), signature)


def build_engine(trt: Any, model: bytes, signature: Signature) -> bytes:
    """Compile `model` with the module `trt`. TensorRT-RTX does this without a GPU. Raises ModelError."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"{trt.__name__}: cannot read the model: {reasons}; restore the model file")
    found = [network.get_input(n) for n in range(network.num_inputs)]
    channels = {tensor.name: tensor.shape[1] if tensor.shape[1] >= 0 else None for tensor in found}
    outputs = tuple(network.get_output(n).name for n in range(network.num_outputs))
    check_signature(trt.__name__, channels, outputs, signature)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for name, shapes in signature.inputs.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(f"{trt.__name__}: cannot build an engine for {signature}; see its log on stderr")
    return bytes(engine)
