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
from appliance.inference.backend import Precision, Shapes
from appliance.inference.engine_cache import cached_engine
from appliance.inference.gpu import ask_child, find_gpu


@cache
def _probe(module: str) -> tuple[str, str | None]:
    """Create its Runtime in a child process: without a working driver that call may end the process."""
    return ask_child(f"import {module} as t; t.Runtime(t.Logger(t.Logger.ERROR)); print(t.__version__)")


class _Session:
    takes: Literal["host", "device"] = "device"

    def __init__(self, trt: Any, engine: bytes) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise ModelError(f"{trt.__name__}: this GPU refuses the engine; see the list of GPUs it supports")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {self._engine.get_tensor_mode(name): name for name in names}  # one input, one output
        self._input, self._output = modes[trt.TensorIOMode.INPUT], modes[trt.TensorIOMode.OUTPUT]
        self.engine_digest = hashlib.sha256(engine).hexdigest()

    def run(self, array: Array) -> Array:
        import cupy

        array = cupy.ascontiguousarray(array, dtype=cupy.float32)
        if not self._context.set_input_shape(self._input, array.shape):
            raise ModelError(f"tensorrt: no profile takes shape {array.shape}; see the card's image sizes")
        output = cupy.empty(tuple(self._context.get_tensor_shape(self._output)), cupy.float32)
        self._context.set_tensor_address(self._input, array.data.ptr)
        self._context.set_tensor_address(self._output, output.data.ptr)
        if not self._context.execute_async_v3(cupy.cuda.get_current_stream().ptr):
            raise ModelError(f"tensorrt: run failed for shape {array.shape}; see the GPU's kernel log")
        return output


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

    def load(self, model: bytes, shapes: Shapes, precision: Precision) -> _Session:
        trt = importlib.import_module(self.name)
        key = f"{hashlib.sha256(model).hexdigest()} {self.fingerprint()} {precision} {shapes}"
        return _Session(trt, cached_engine(self._cache, key, lambda: build_engine(trt, model, shapes)))


def build_engine(trt: Any, model: bytes, shapes: Shapes) -> bytes:
    """Compile `model` with the module `trt`. TensorRT-RTX does this without a GPU. Raises ModelError."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(model):
        reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"{trt.__name__}: cannot read the model: {reasons}; restore the model file")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, *shapes)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ModelError(f"{trt.__name__}: cannot build an engine for {shapes.typical}; see its log on stderr")
    return bytes(engine)
