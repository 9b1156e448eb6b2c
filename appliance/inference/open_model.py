# SPDX-License-Identifier: Apache-2.0
"""From a model's name to an engine that proved itself on this machine, or to a clear refusal."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from appliance.arrays import to_device, to_host
from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Backend, Precision, Session
from appliance.inference.card import Card, Model, read_model, shipped_models
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.openvino import OpenVino
from appliance.inference.parity import Parity, check_parity
from appliance.inference.tensorrt import TensorRT

Candidate = tuple[Backend, Precision]


class LiveModel:
    """A model whose engine reproduced its golden output here. `degraded` says what had to be stepped over."""

    def __init__(
        self, model: Model, session: Session, candidate: Candidate, parity: Parity, degraded: tuple[str, ...]
    ) -> None:
        self.card: Card = model.card
        self.backend, self.precision = candidate[0].name, candidate[1]
        self.parity = parity
        self.degraded = degraded
        self.provenance = (model.card.name, hashlib.sha256(model.onnx).hexdigest(), session.engine_digest)
        self._session = session
        self._lock = threading.Lock()  # a session serves one thread at a time

    def run(self, array: Array) -> Array:
        """Give the model's output for `array`, float32 (1, channel, y, x), host or device; stays where it is."""
        on_host, wants_host = isinstance(array, np.ndarray), self._session.takes == "host"
        if on_host == wants_host:
            return self._serve(array)
        return to_device(self._serve(to_host(array))) if wants_host else to_host(self._serve(to_device(array)))

    def _serve(self, array: Array) -> Array:
        with self._lock:
            return self._session.run(array)

    def status(self) -> dict[str, Any]:
        """Plain values for console, API and journal."""
        return {
            "model": self.card.name,
            "version": self.card.version,
            "backend": self.backend,
            "precision": self.precision,
            "parity_max_error": self.parity.max_error,
            "parity_tolerance": self.parity.tolerance,
            "parity_ms": round(self.parity.milliseconds, 2),
            "degraded": "; ".join(self.degraded),
        }


def candidates(device: str, precision: str, threads: int, engines: Path) -> list[Candidate]:
    """Return the backends to try, best first."""
    cpu: list[Candidate] = [(OpenVino(threads), "f32"), (OnnxRuntime("cpu", threads), "f32")]
    if precision != "f32":
        cpu.insert(0, (OpenVino(threads), "bf16"))
    if device != "gpu":
        return cpu
    return [
        (TensorRT("tensorrt", engines), "f32"),
        (TensorRT("tensorrt_rtx", engines), "f32"),
        (OnnxRuntime("cuda", threads), "f32"),
        *cpu,
    ]


def first_that_passes(
    model: Model, order: Iterable[Candidate], wanted: Callable[[Backend, Precision], bool]
) -> LiveModel:
    """Take the first of `order` that reproduces the golden output. Raises ModelError when none does.

    Stepping over a backend that failed is a degradation. Stepping over one that is not there is none, unless what
    is left is not what was `wanted`.
    """
    absent: list[str] = []
    failed: list[str] = []
    for backend, precision in order:
        label = f"{backend.name} {precision}"
        if reason := backend.available(precision):
            absent.append(f"{label}: {reason}")
            continue
        try:
            session = backend.load(model.onnx, model.card.shapes, precision)
            parity = check_parity(session, model, precision)
        except ModelError as e:
            failed.append(f"{label}: {e}")
            continue
        degraded = failed if wanted(backend, precision) else absent + failed
        return LiveModel(model, session, (backend, precision), parity, tuple(degraded))
    reasons = "; ".join(absent + failed)
    raise ModelError(f"{model.card.name}: no backend reproduces its golden output here ({reasons}); restore the model")


@cache
def open_model(
    name: str,
    models_dir: Path | None,
    engines: Path,
    device: str = "cpu",
    precision: Literal["auto", "f32", "bf16"] = "auto",
    threads: int = 1,
) -> LiveModel:
    """Open the model `name` of `models_dir` (None: the shipped ones), once per process.

    `engines` is the folder of built engines, used only where one is built. "auto" takes bf16 where the CPU has it.
    Raises ModelError.
    """
    model = read_model(name, models_dir or shipped_models())
    return first_that_passes(
        model,
        candidates(device, precision, threads, engines),
        lambda backend, got: backend.on_gpu if device == "gpu" else precision in ("auto", got),
    )
