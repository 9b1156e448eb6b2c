# SPDX-License-Identifier: Apache-2.0
"""TensorRT 11 and TensorRT-RTX: nearly one API, so one class with the module as a parameter.

Networks are strongly typed: the ONNX file decides every precision; TF32 is cleared, or "f32" would not be f32.

Building is tested with the real TensorRT-RTX. Running (pinned memory, one stream, CUDA graphs) has not yet been on a
GPU: until it has, the golden files are what keeps a wrong answer out.
"""

from __future__ import annotations

import hashlib
import importlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Precision, Shape, Signature, shapes_of
from appliance.inference.build_engine import MODULES, build_engine
from appliance.inference.engine_cache import cached_engine, engine_file
from appliance.inference.gpu import ask_child, find_gpu


@cache
def _probe(module: str) -> tuple[str, str | None]:
    """Create its Runtime in a child process: without a working driver that call may end the process."""
    return ask_child(f"import {module} as t; t.Runtime(t.Logger(t.Logger.ERROR)); print(t.__version__)")


class _Bound:
    """Staging memory, device memory and CUDA graph for inputs of certain shapes."""

    def __init__(self, session: _Session, shapes: tuple[Shape, ...]) -> None:
        cupy: Any = importlib.import_module("cupy")
        cupyx: Any = importlib.import_module("cupyx")
        context: Any = session.context
        self._stream: Any = session.stream
        self.inputs = [cupyx.empty_pinned(shape, np.float32) for shape in shapes]
        self._inputs = [cupy.empty(shape, np.float32) for shape in shapes]
        for name, array in zip(session.inputs, self._inputs, strict=True):
            if not context.set_input_shape(name, array.shape):
                raise ModelError(f"{session.name}: no profile takes shape {array.shape}; see the card's image sizes")
        sizes = [tuple(context.get_tensor_shape(name)) for name in session.outputs]
        self.outputs = [cupyx.empty_pinned(shape, np.float32) for shape in sizes]
        self._outputs = [cupy.empty(shape, np.float32) for shape in sizes]
        for name, array in zip((*session.inputs, *session.outputs), (*self._inputs, *self._outputs), strict=True):
            context.set_tensor_address(name, array.data.ptr)
        self._context = context
        self._graph: Any = None
        if session.captures:
            self._execute()  # the first run after a change of shape must not be captured
            self._stream.begin_capture()
            self._execute()
            self._graph = self._stream.end_capture()

    def _execute(self) -> bool:
        return bool(self._context.execute_async_v3(self._stream.ptr))

    def run(self) -> bool:
        """Run from `inputs` to `outputs`, both pinned; False when the engine refused."""
        for host, device in zip(self.inputs, self._inputs, strict=True):
            device.set(host, self._stream)
        started = True
        if self._graph is None:
            started = self._execute()
        else:
            self._graph.launch(self._stream)
        for host, device in zip(self.outputs, self._outputs, strict=True):
            device.get(self._stream, out=host, blocking=False)
        self._stream.synchronize()
        return started


class _Session:
    takes: Literal["host", "device"] = "host"  # frames are in host memory; they go through pinned memory of our own

    def __init__(self, name: str, trt: Any, engine: bytes, signature: Signature) -> None:
        self.name = name
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)  # must outlive the engine
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise ModelError(f"{name}: this machine's GPU refuses the engine; see the list of GPUs it supports")
        self.inputs, self.outputs = tuple(signature.inputs), signature.outputs
        self.engine_digest = hashlib.sha256(engine).hexdigest()
        self.context, self.captures = self._make_context(trt), name == "tensorrt"
        self._bound: dict[tuple[Shape, ...], _Bound] = {}
        cupy: Any = importlib.import_module("cupy")
        self.stream: Any = cupy.cuda.Stream(non_blocking=True)

    def _make_context(self, trt: Any) -> Any:
        if self.name == "tensorrt":
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()  # TensorRT-RTX captures by itself; it compiles while it runs
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._engine.create_execution_context(config)

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._bound:
            self._bound = {shapes: _Bound(self, shapes)}  # one execution context has one shape at a time
        bound = self._bound[shapes]
        for staging, array in zip(bound.inputs, arrays, strict=True):
            staging[...] = array
        if not bound.run():
            raise ModelError(f"{self.name}: run failed for shape {shapes_of(arrays)}; see the GPU's kernel log")
        return tuple(array.copy() for array in bound.outputs)


class TensorRT:
    """`name` is "tensorrt" or "tensorrt_rtx"; `cache` is the folder of built engines."""

    on_gpu = True

    def __init__(self, name: Literal["tensorrt", "tensorrt_rtx"], cache: Path) -> None:
        self.name: str = name
        self._cache = cache

    def available(self, precision: Precision) -> str | None:
        if precision != "f32":
            return f"{self.name} takes its precision from the model file, which is f32"
        gpu = find_gpu()
        if isinstance(gpu, str):
            return gpu
        failure = _probe(MODULES[self.name])[1]
        return f"{self.name}: {failure}" if failure else None

    def fingerprint(self) -> str:
        gpu = find_gpu()
        return gpu if isinstance(gpu, str) else self._fingerprint_for(gpu.sm)

    def load(self, model: bytes, signature: Signature, precision: Precision) -> _Session:
        gpu = find_gpu()
        if isinstance(gpu, str):
            raise ModelError(gpu)
        engine = self.build(model, signature, gpu.sm)[1]
        return _Session(self.name, self._module(), engine, signature)

    def build(self, model: bytes, signature: Signature, sm: str) -> tuple[Path, bytes]:
        """Return the engine for GPUs of `sm` ("sm_86") and its file, building it where it is not in the cache.

        TensorRT-RTX builds for GPUs that are not here, too; such an engine is not run before it passed the gate on
        one. Raises ModelError.
        """
        key = f"{hashlib.sha256(model).hexdigest()} {self._fingerprint_for(sm)} {signature}"
        engine = cached_engine(self._cache, key, lambda: build_engine(self.name, model, signature, sm))
        return engine_file(self._cache, key), engine

    def _fingerprint_for(self, sm: str) -> str:
        """TensorRT's engines depend on GPU and driver; TensorRT-RTX compiles for the driver when it loads one."""
        here = f" on {find_gpu()}" if self.name == "tensorrt" else ""
        return f"{self.name} {self._module().__version__} for {sm}{here}, tf32 off"

    def _module(self) -> Any:
        try:
            return importlib.import_module(MODULES[self.name])
        except ImportError as e:
            raise ModelError(f"{self.name}: not installed ({e}); see docs/install.md") from e
