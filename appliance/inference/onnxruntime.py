# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime: float32 on the CPU (the reference), or its CUDA provider."""

from __future__ import annotations

import hashlib
from typing import Literal

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _errors

from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Precision, Signature, check_signature, one_line, shapes_of
from appliance.inference.gpu import find_gpu

onnxruntime.disable_telemetry_events()

# It has no common parent class for its errors.
_FAILURES = tuple(kind for kind in vars(_errors).values() if isinstance(kind, type) and issubclass(kind, Exception))


class _Session:
    takes: Literal["host", "device"] = "host"  # the CUDA provider copies

    def __init__(self, session: onnxruntime.InferenceSession, signature: Signature, engine_digest: str) -> None:
        self._session = session
        self._inputs, self._outputs = tuple(signature.inputs), signature.outputs
        self.engine_digest = engine_digest

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        try:
            return tuple(self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True))))
        except _FAILURES as e:
            raise ModelError(
                f"onnxruntime: run failed for shape {shapes_of(arrays)}: {one_line(e)}; see the card's limits"
            ) from e


class OnnxRuntime:
    """`provider` "cpu" or "cuda"."""

    def __init__(self, provider: Literal["cpu", "cuda"] = "cpu", threads: int = 1) -> None:
        self.name = "onnxruntime" if provider == "cpu" else "onnxruntime-cuda"
        self.on_gpu = provider == "cuda"
        self._provider = "CPUExecutionProvider" if provider == "cpu" else "CUDAExecutionProvider"
        self._threads = threads

    def available(self, precision: Precision) -> str | None:
        if precision != "f32":
            return f"{self.name} runs f32 only, not {precision}"
        if not self.on_gpu:
            return None
        gpu = find_gpu()
        if isinstance(gpu, str):
            return gpu
        if self._provider not in onnxruntime.get_available_providers():
            return "this onnxruntime has no CUDA provider; install the extra 'gpu'"
        return None

    def fingerprint(self) -> str:
        gpu = find_gpu() if self.on_gpu else "cpu"
        return f"{self.name} {onnxruntime.__version__} on {gpu}"

    def load(self, model: bytes, signature: Signature, precision: Precision) -> _Session:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the receiver needs the core
        provider = (self._provider, {"use_tf32": "0"} if self.on_gpu else {})
        try:
            session = onnxruntime.InferenceSession(model, options, providers=[provider])
        except _FAILURES as e:
            raise ModelError(f"{self.name}: cannot load the model: {one_line(e)}; restore the model file") from e
        if session.get_providers()[0] != self._provider:  # it falls back to the CPU with only a log line
            raise ModelError(f"{self.name}: got {session.get_providers()[0]!r}; check the CUDA libraries")
        check_signature(
            self.name,
            {found.name: found.shape[1] if isinstance(found.shape[1], int) else None for found in session.get_inputs()},
            tuple(found.name for found in session.get_outputs()),
            signature,
        )
        digest = hashlib.sha256(model + f"{self.fingerprint()} {precision}".encode()).hexdigest()
        return _Session(session, signature, digest)
