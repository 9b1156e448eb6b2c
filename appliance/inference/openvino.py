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
from appliance.inference.backend import Precision, Shapes, one_line


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

    def __init__(self, compiled: Any, engine_digest: str) -> None:
        self._request = compiled.create_infer_request()
        self.engine_digest = engine_digest

    def run(self, array: Array) -> Array:
        try:
            self._request.infer([array], share_inputs=True)
        except RuntimeError as e:
            raise ModelError(
                f"openvino: run failed for shape {array.shape}: {one_line(e)}; see the card's limits"
            ) from e
        return self._request.get_output_tensor(0).data.copy()  # its memory is reused by the next call


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

    def load(self, model: bytes, shapes: Shapes, precision: Precision) -> _Session:
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
        digest = hashlib.sha256(model + f"{self.fingerprint()} {precision} {self._threads}".encode()).hexdigest()
        return _Session(compiled, digest)
