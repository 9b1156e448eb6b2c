# SPDX-License-Identifier: Apache-2.0
"""OpenVINO on the CPU, always at a precision that was asked for by name.

Left alone it picks bf16 on CPUs that have it and does not say so.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Precision, Signature, check_signature, one_line, shapes_of


@cache
def _openvino() -> ModuleType:
    """Import it without its telemetry client: OpenVINO then takes its own stub for it."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: its import fails
    return importlib.import_module("openvino")


@cache
def _core() -> Any:
    return _openvino().Core()


@cache
def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware: AMX, or AVX-512 BF16 (measured 1.6 times as fast as f32)."""
    try:
        return not {"amx_bf16", "avx512_bf16"}.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


class _Session:
    takes: Literal["host", "device"] = "host"

    def __init__(self, compiled: Any, signature: Signature, engine_digest: str) -> None:
        self._request = compiled.create_infer_request()
        self._inputs, self._outputs = tuple(signature.inputs), signature.outputs
        self.engine_digest = engine_digest

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        try:
            self._request.infer(dict(zip(self._inputs, arrays, strict=True)), share_inputs=True)
        except RuntimeError as e:
            raise ModelError(
                f"openvino: run failed for shape {shapes_of(arrays)}: {one_line(e)}; see the card's limits"
            ) from e
        # copied: its memory is reused by the next call
        return tuple(self._request.get_tensor(name).data.copy() for name in self._outputs)


class OpenVino:
    """`threads` at most, and no thread is tied to a core: several pipelines share this machine."""

    name = "openvino"
    on_gpu = False

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads

    def available(self, precision: Precision) -> str | None:
        if precision == "bf16" and not has_native_bf16():
            return "bf16 needs a CPU with AMX or AVX-512 BF16"
        return None

    def fingerprint(self) -> str:
        return f"openvino {_openvino().__version__} on {_core().get_property('CPU', 'FULL_DEVICE_NAME')}"

    def load(self, model: bytes, signature: Signature, precision: Precision) -> _Session:
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        try:
            compiled = _core().compile_model(_core().read_model(model, b""), "CPU", settings)
        except RuntimeError as e:
            raise ModelError(f"openvino: cannot load the model: {one_line(e)}; restore the model file") from e
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != precision:
            raise ModelError(f"openvino: asked for {precision}, compiled for {got!r}; set precision: f32")
        check_signature(
            self.name,
            {port.get_any_name(): _n_channels(port.get_partial_shape()) for port in compiled.inputs},
            tuple(port.get_any_name() for port in compiled.outputs),
            signature,
        )
        digest = hashlib.sha256(model + f"{self.fingerprint()} {precision} {self._threads}".encode()).hexdigest()
        return _Session(compiled, signature, digest)


def _n_channels(shape: Any) -> int | None:
    return shape[1].get_length() if shape.rank.is_static and shape[1].is_static else None
