# SPDX-License-Identifier: Apache-2.0
"""From a model's name to an engine that proved itself on this machine, or to a clear refusal."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from appliance.arrays import namespace
from appliance.context import Context
from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.card import Model, read_model
from appliance.inference.installed import place
from appliance.inference.ladder import Candidate, Engine, Ladder, Rung
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.openvino import OpenVino
from appliance.inference.tensorrt import TensorRT
from appliance.live_threads import let_live_threads_pass

log = logging.getLogger(__name__)

FIRST_WAIT_S = 20.0  # for the engine, once for each model, before the graph runs; building one may take longer
RETRY_S = 60.0  # a model without a backend left is tried again: memory may be free again, the machine less busy
WATCH_S = 1.0  # how soon a changed, activated or rolled back model is noticed

PrecisionSetting = Literal["auto", "f32", "bf16"]


class LiveModel:
    """A model as one scan uses it. What it runs on may change from one frame to the next; `status` says."""

    def __init__(self, ladder: Ladder) -> None:
        self.card = ladder.model.card
        self._ladder = ladder
        self._served_by: Engine | None = None

    def run(self, *arrays: Array) -> tuple[Array, ...]:
        """Give the model's outputs, float32, in the order of the ONNX graph; where the first of `arrays` is.

        `arrays` are float32 (1, channel, y, x), host or device: the image, and a streaming model's memory (see the
        card), which starts anew where another version of the model has taken over.

        Raises
        ------
        ModelError
            When no engine is ready, this one failed (another is then prepared in the background), or `arrays` are
            not what the card says. The image is to pass through unprocessed, marked with the error's text.
        """
        self._check(arrays)
        engine = self._ladder.engine()
        if len(arrays) > 1 and self._served_by and self._served_by.rung.model is not engine.rung.model:
            arrays = (arrays[0], *(namespace(array).zeros_like(array) for array in arrays[1:]))
        outputs = self._ladder.serve(engine, arrays)
        self._served_by = engine
        return outputs

    def warm_up(self, y: int, x: int) -> None:
        """Have the kernels made for images of `y` by `x` pixels before the first frame, where an engine is ready.

        Raises ModelError when the model takes no such images; an engine that fails is told by the frames.
        """
        shapes = [(1, len(self.card.input.channels), y, x)]
        if self.card.memory is not None:
            shapes.append(self.card.memory.shape(y, x))
        arrays = tuple(np.zeros(shape, np.float32) for shape in shapes)
        self._check(arrays)
        with suppress(ModelError):
            self.run(*arrays)

    @property
    def provenance(self) -> tuple[str, str, str]:
        """Name, digest of the model and of the engine that the last frame was run on."""
        engine = self._served_by or self._ladder.current
        if engine is None:
            return self.card.name, self.card.sha256, ""
        return engine.provenance

    @property
    def degraded(self) -> tuple[str, ...]:
        """What had to be stepped over to get to what it runs on."""
        return self._ladder.degraded

    def status(self) -> dict[str, Any]:
        """Plain values for console, API and journal."""
        return self._ladder.status()

    def _check(self, arrays: tuple[Array, ...]) -> None:
        """An engine is not to blame, nor replaced, for arrays that it was not made for. Raises ModelError."""
        given, card = self.card.input, self.card
        sides = arrays[0].shape[2:]
        shapes = [(1, len(given.channels), *sides)]
        if card.memory is not None and len(sides) == 2:
            shapes.append(card.memory.shape(*sides))
        fits = all(given.smallest_px <= n <= given.largest_px and n % given.multiple_px == 0 for n in sides)
        found = [array.shape for array in arrays]
        if not fits or found != shapes or any(array.dtype != np.float32 for array in arrays):
            raise ModelError(
                f"{card.name}: takes (1, {len(given.channels)}, y, x) float32, {given.smallest_px} to "
                f"{given.largest_px} pixels a side in multiples of {given.multiple_px}"
                f"{', and its memory' if card.memory else ''}; got {', '.join(map(str, found))} "
                f"{arrays[0].dtype}; correct the stage"
            )


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


class _Opened:
    """A model that this process uses: the ladder that new scans take, renewed when its files change."""

    def __init__(self, name: str, context: Context, precision: PrecisionSetting, threads: int) -> None:
        self._name, self._context, self._precision = name, context, precision
        self._place = place(context.models_dir, context.data_dir)
        self._candidates = candidates(context.device, precision, threads, context.data_dir / "engines")
        self._ladder: Ladder | None = None
        self._refusal = ""
        self._stamp, self._retry_s = self._place.stamp(name), 0.0
        try:
            self._take(self._make_ladder({})[0])
        except ModelError as e:
            self._refuse(str(e))

    def live(self) -> LiveModel:
        """Return the model for a scan. Raises ModelError when there is nothing to run."""
        if self._ladder is None:
            raise ModelError(self._refusal)
        if self._ladder.settled.is_set():
            self._ladder.engine()
        return LiveModel(self._ladder)

    def wait(self, seconds: float) -> None:
        """Wait until the model runs or cannot run."""
        if self._ladder is not None:
            self._ladder.settled.wait(seconds)

    def renew(self) -> None:
        """Take changed files up for the scans to come, if they are good, and try again what ran out of backends.

        Slow: for the watching thread only.
        """
        stamp, now_s = self._place.stamp(self._name), time.monotonic()
        changed = stamp != self._stamp
        ladder = self._ladder
        if not changed and not (ladder and ladder.exhausted and now_s >= self._retry_s):
            return
        self._stamp, self._retry_s = stamp, now_s + RETRY_S
        try:
            self._take_if_good(*self._make_ladder({} if changed or ladder is None else ladder.distrusted))
        except ModelError as e:
            self._refuse(str(e))

    def _take_if_good(self, ladder: Ladder, refused: list[str]) -> None:
        ladder.settled.wait()
        running, kept = ladder.running, self._ladder
        nothing_to_lose = kept is None or kept.running is None
        if running and (nothing_to_lose or (running.model is ladder.model and not refused)):
            log.info("%s: version %s is taken up by the next scan", self._name, running.model.card.version)
            self._take(ladder)
        else:
            self._refuse("; ".join(ladder.degraded))

    def _make_ladder(self, distrusted: dict[str, str]) -> tuple[Ladder, list[str]]:
        """Start on the active version, then the one before it where it takes the same inputs; say what was refused.

        `distrusted` rungs are left out. Raises ModelError.
        """
        models: list[Model] = []
        refused: list[str] = []
        for folder in self._place.folders(self._name)[:2]:
            try:
                model = read_model(self._name, folder)
            except ModelError as e:
                refused.append(str(e))
                continue
            if not models or (model.onnx != models[0].onnx and model.card.signature == models[0].card.signature):
                models.append(model)
        rungs = [Rung(model, *candidate) for model in models for candidate in self._candidates]
        trusted = [rung for rung in rungs if str(rung) not in distrusted]
        refused += [f"{rung}: {reason}" for rung, reason in distrusted.items()]
        if not trusted:
            raise ModelError("; ".join(refused))
        ladder = Ladder(trusted, self._is_best, self._context.recheck_every, refused)
        ladder.start()
        return ladder, refused

    def _is_best(self, rung: Rung) -> bool:
        return rung.backend.on_gpu if self._context.device == "gpu" else self._precision in ("auto", rung.precision)

    def _take(self, ladder: Ladder) -> None:
        if self._ladder is not None:
            self._ladder.tell(None)  # a running scan may still use it; its images say how that goes
        self._ladder = ladder
        ladder.tell(self._context.alarm)

    def _refuse(self, reason: str) -> None:
        self._refusal = reason
        runs = self._ladder is not None and self._ladder.running is not None
        left = "what was loaded before stays in use" if runs else "images pass through unprocessed"
        self._context.alarm(f"model {self._name}", f"{reason}; {left}")


_opened: dict[tuple[object, ...], _Opened] = {}
_opening = threading.Lock()


def open_model(name: str, context: Context, precision: PrecisionSetting = "auto", threads: int = 1) -> LiveModel:
    """Open the model `name` for a scan; it is read and proved once per process, and again when its files change.

    The first call waits up to 20 s for an engine; no later one waits. While there is none, `run` raises. "auto" takes
    bf16 where the CPU has it. What it runs on is in `status()`; the alarm "model NAME" says when that is not the best
    this site asked for. Raises ModelError when the model is missing or altered, or no backend reproduces its golden
    output here.
    """
    key = (name, context.models_dir, context.data_dir, context.device, precision, threads)
    with _opening:
        opened, first = _opened.get(key), not _opened
        if is_new := opened is None:
            opened = _opened[key] = _Opened(name, context, precision, threads)
    if first:
        threading.Thread(target=_watch, name="models", daemon=True).start()
    if is_new:
        opened.wait(FIRST_WAIT_S)
    return opened.live()


def _watch() -> None:
    """Look after changed files, away from the graph's thread: a disk may hang."""
    let_live_threads_pass()
    while True:
        time.sleep(WATCH_S)
        for opened in list(_opened.values()):
            opened.renew()
