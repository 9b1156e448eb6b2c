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
from appliance.context import Context
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

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Give the model's outputs, float32, in the order of the ONNX graph; where the first of `arrays` is.

        `arrays` are float32 (1, channel, y, x), host or device: the image, and a streaming model's memory (see the
        card). Raises ModelError.
        """
        on_host, wants_host = isinstance(arrays[0], np.ndarray), self._session.takes == "host"
        if on_host == wants_host:
            return self._serve(arrays)
        if wants_host:
            return tuple(to_device(a) for a in self._serve(tuple(to_host(a) for a in arrays)))
        return tuple(to_host(a) for a in self._serve(tuple(to_device(a) for a in arrays)))

    def warm_up(self, y: int, x: int) -> None:
        """Make the kernels for images of `y` by `x` pixels now, before the first frame. Raises ModelError."""
        shapes = [(1, len(self.card.input.channels), y, x)]
        if self.card.memory is not None:
            shapes.append(self.card.memory.shape(y, x))
        self.run(*(np.zeros(shape, np.float32) for shape in shapes))

    def _serve(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        with self._lock:
            return self._session.run(*arrays)

    def status(self) -> dict[str, Any]:
        """Plain values for console, API and journal."""
        return {
            "model": self.card.name,
            "version": self.card.version,
            "backend": self.backend,
            "precision": self.precision,
            "parity_max_error": self.parity.max_error,
            "parity_tolerance": self.parity.tolerance,
            "parity_p95_ms": round(self.parity.p95_ms, 2),
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
            session = backend.load(model.onnx, model.card.signature, precision)
            parity = check_parity(session, model, precision)
        except ModelError as e:
            failed.append(f"{label}: {e}")
            continue
        degraded = failed if wanted(backend, precision) else absent + failed
        return LiveModel(model, session, (backend, precision), parity, tuple(degraded))
    reasons = "; ".join(absent + failed)
    raise ModelError(f"{model.card.name}: no backend reproduces its golden output here ({reasons}); restore the model")


def open_model(
    name: str, context: Context, precision: Literal["auto", "f32", "bf16"] = "auto", threads: int = 1
) -> LiveModel:
    """Open the model `name`, once per process. "auto" takes bf16 where the CPU has it. Raises ModelError.

    What it runs on is in `status()`; the alarm "model NAME" says when that is not the best this site asked for.
    """
    live = _open(name, context.models_dir, context.data_dir / "engines", context.device, precision, threads)
    degraded = "; ".join(live.degraded)
    context.alarm(f"model {name}", degraded and f"runs degraded on {live.backend}: {degraded}")
    return live


@cache
def _open(name: str, models_dir: Path | None, engines: Path, device: str, precision: str, threads: int) -> LiveModel:
    model = read_model(name, models_dir or shipped_models())
    return first_that_passes(
        model,
        candidates(device, precision, threads, engines),
        lambda backend, got: backend.on_gpu if device == "gpu" else precision in ("auto", got),
    )
