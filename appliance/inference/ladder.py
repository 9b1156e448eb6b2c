# SPDX-License-Identifier: Apache-2.0
"""The engines that may run a model, best first: one runs, and the next takes over when it no longer proves itself.

Rule: the graph's thread waits for nothing here. While there is no engine, `engine` raises, and images pass through.
Everything slow (loading, building, the gate, the re-check) is done by a thread of the ladder's own.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from appliance.arrays import namespace, to_device, to_host
from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import ENGINE_FAILURES, Backend, Precision, Session, one_line
from appliance.inference.card import Model
from appliance.inference.golden import Arrays
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.parity import Clock, Parity, check_parity, largest_error
from appliance.live_threads import let_live_threads_pass

log = logging.getLogger(__name__)

Candidate = tuple[Backend, Precision]
Alarm = Callable[[str, str], None]

REFERENCE = OnnxRuntime().name


class Rung(NamedTuple):
    """One way to run one version of a model."""

    model: Model
    backend: Backend
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend.name} {self.precision}"


class Engine:
    """A rung that passed the gate here."""

    def __init__(self, rung: Rung, session: Session, parity: Parity) -> None:
        self.rung, self.parity = rung, parity
        card = rung.model.card
        self.provenance = (card.name, hashlib.sha256(rung.model.onnx).hexdigest(), session.engine_digest)
        self._session = session
        self._lock = threading.Lock()  # a session serves one thread at a time

    def run(self, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run the session; the outputs are where the first of `arrays` is."""
        on_host, wants_host = isinstance(arrays[0], np.ndarray), self._session.takes == "host"
        with self._lock:
            if on_host == wants_host:
                return self._session.run(*arrays)
            if wants_host:
                return tuple(to_device(a) for a in self._session.run(*(to_host(a) for a in arrays)))
            return tuple(to_host(a) for a in self._session.run(*(to_device(a) for a in arrays)))


class Ladder:
    """The rungs of a model's active version, then those of the versions before it.

    `stepped_over` says what is wrong already with what would have come first. `best(rung)` says whether this is what
    the site asked for. One frame in `recheck_every` is run again on the reference, 0: none.
    """

    def __init__(
        self,
        rungs: Sequence[Rung],
        best: Callable[[Rung], bool],
        recheck_every: int = 0,
        stepped_over: Iterable[str] = (),
        clock: Clock | None = None,
    ) -> None:
        self.model = rungs[0].model
        self.settled = threading.Event()  # an engine runs, or none is left
        self.distrusted: dict[str, str] = {}  # rungs that computed wrongly while they ran, and how
        self._rungs: Iterator[Rung] = iter(rungs)
        self._best, self._recheck_every, self._clock = best, recheck_every, clock
        self._alarm: Alarm | None = None
        self._changing, self._telling = threading.Lock(), threading.Lock()
        self._engine: Engine | None = None
        self._why_none = "preparing: its engine is built or proved; images pass through until then"
        self._state = "preparing"
        self._failed, self._absent = list(stepped_over), list[str]()
        self._n_runs = self._n_rechecks = 0
        self._recheck_error = 0.0
        self._rechecking = False
        self._reference: tuple[Model, Session] | None = None
        self._tasks: queue.SimpleQueue[Callable[[Ladder], None] | None] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin with the first rung, in the background."""
        weakref.finalize(self, self._tasks.put, None)  # the thread ends when nobody uses this ladder any more
        name = f"model {self.model.card.name}"
        threading.Thread(target=_work, args=(weakref.ref(self), self._tasks), name=name, daemon=True).start()
        self._tasks.put(Ladder._step)

    def tell(self, alarm: Alarm | None) -> None:
        """From now on raise alarms here; None: be silent."""
        with self._telling:
            self._alarm = alarm
        self._tell()

    @property
    def current(self) -> Engine | None:
        """The engine that runs, if there is one."""
        return self._engine

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to run on."""
        return self.settled.is_set() and self._engine is None

    @property
    def running(self) -> Rung | None:
        """What the model runs on now."""
        engine = self._engine
        return engine.rung if engine else None

    @property
    def degraded(self) -> tuple[str, ...]:
        """What had to be stepped over; what is not there counts only where the site asked for it."""
        rung = self.running
        return tuple(self._failed if rung and self._best(rung) else self._absent + self._failed)

    def engine(self) -> Engine:
        """Return what runs. Raises ModelError while there is nothing."""
        engine = self._engine
        if engine is None:
            raise ModelError(f"{self.model.card.name}: {self._why_none}")
        return engine

    def serve(self, engine: Engine, arrays: tuple[Array, ...]) -> tuple[Array, ...]:
        """Run one frame. Raises ModelError when that failed; then the next rung is prepared in the background."""
        try:
            outputs = engine.run(arrays)
        except ENGINE_FAILURES as e:
            reason = one_line(e) or type(e).__name__
            self._step_down(engine, reason)
            raise ModelError(f"{self.model.card.name}: {engine.rung} failed: {reason}") from e
        if not _finite(outputs):
            if not _finite(arrays):
                raise ModelError(f"{self.model.card.name}: its input has values that are not finite; look at the scan")
            self._distrust(engine, "gave values that are not finite")
            raise ModelError(f"{self.model.card.name}: {engine.rung} gave values that are not finite")
        self._count(engine, arrays, outputs)
        return outputs

    def status(self) -> dict[str, Any]:
        """Plain values for console, API and journal."""
        engine = self._engine
        rung = engine.rung if engine else None
        parity = engine.parity if engine else Parity(0.0, 0.0, 0.0)
        return {
            "model": self.model.card.name,
            "version": (rung.model if rung else self.model).card.version,
            "model_state": self._state,
            "backend": rung.backend.name if rung else "",
            "precision": rung.precision if rung else "",
            "parity_max_error": parity.max_error,
            "parity_tolerance": parity.tolerance,
            "parity_p95_ms": round(parity.p95_ms, 2),
            "rechecks": self._n_rechecks,
            "recheck_max_error": self._recheck_error,
            "degraded": "; ".join(self.degraded),
        }

    def _distrust(self, engine: Engine, reason: str) -> None:
        self.distrusted[str(engine.rung)] = reason
        self._step_down(engine, reason)

    def _step_down(self, engine: Engine, reason: str) -> None:
        """Take `engine` out, unless somebody has done so already, and have the next one prepared."""
        with self._changing:
            if self._engine is not engine:
                return
            self._engine = None
            self._failed.append(f"{_versioned(engine.rung, self.model)}: {reason}")
            self._state = "preparing"
            self._why_none = f"preparing the next backend, {engine.rung} failed: {reason}"
            self.settled.clear()
        self._tell()
        self._tasks.put(Ladder._step)

    def _step(self) -> None:
        """Take the next rung that passes the gate."""
        for rung in self._rungs:
            label = _versioned(rung, self.model)
            if reason := rung.backend.available(rung.precision):
                if (absent := f"{rung}: {reason}") not in self._absent:
                    self._absent.append(absent)
                continue
            try:
                session = rung.backend.load(rung.model.onnx, rung.model.card.signature, rung.precision)
                parity = check_parity(session, rung.model, rung.precision, self._clock)
            except ENGINE_FAILURES as e:
                self._failed.append(f"{label}: {one_line(e) or type(e).__name__}")
                continue
            with self._changing:
                self._engine, self._state, self._why_none = Engine(rung, session, parity), "running", ""
            log.info("%s: %s, error %.2g, %.1f ms", self.model.card.name, label, parity.max_error, parity.p95_ms)
            break
        else:
            reasons = "; ".join(self._absent + self._failed)
            with self._changing:
                self._state = "pass-through"
                self._why_none = f"no backend reproduces its golden output here ({reasons}); restore the model"
        self.settled.set()
        self._tell()

    def _give_up(self) -> None:
        """Be without an engine for good, after a defect of ours: its traceback is in the journal."""
        with self._changing:
            self._engine, self._state = None, "pass-through"
            self._why_none = "defect in its background thread; report the log"
        self.settled.set()
        self._tell()

    def _tell(self) -> None:
        """Raise or clear the alarm for how things are now; whoever changes them calls this afterwards."""
        with self._telling:
            if self._alarm is None:
                return
            rung, degraded = self.running, "; ".join(self.degraded)
            if rung is None:
                text = f"{self._why_none}; images pass through unprocessed"
            else:
                text = degraded and f"runs degraded on {_versioned(rung, self.model)}: {degraded}"
            self._alarm(f"model {self.model.card.name}", text)

    def _count(self, engine: Engine, arrays: tuple[Array, ...], outputs: tuple[Array, ...]) -> None:
        """Hand one frame in `recheck_every` to the background, as a copy; none while the last one is still there."""
        self._n_runs += 1
        due = self._recheck_every and self._n_runs % self._recheck_every == 0
        if not due or self._rechecking or engine.rung.backend.name == REFERENCE:
            return
        self._rechecking = True
        given, found = (tuple(np.array(to_host(a)) for a in which) for which in (arrays, outputs))
        self._tasks.put(lambda ladder: ladder._recheck(engine, given, found))

    def _recheck(self, engine: Engine, given: Arrays, found: Arrays) -> None:
        """Run a frame on the reference as well. Its image is out already: this is about the next ones."""
        tolerance = engine.parity.tolerance
        try:
            error = largest_error(given, found, self._reference_for(engine.rung.model).run(*given))
        except ModelError as e:
            log.warning("%s: a frame could not be checked again: %s", self.model.card.name, e)
            return
        finally:
            self._rechecking = False
        self._n_rechecks += 1
        self._recheck_error = float(np.maximum(self._recheck_error, error))
        if not error <= tolerance:
            self._distrust(engine, f"a frame missed the reference by {error:.3g}, tolerance {tolerance:.3g}")

    def _reference_for(self, model: Model) -> Session:
        if self._reference is None or self._reference[0] is not model:
            self._reference = model, OnnxRuntime().load(model.onnx, model.card.signature, "f32")
        return self._reference[1]


def _versioned(rung: Rung, active: Model) -> str:
    """Name a rung, with its version where that is not the active one."""
    version = rung.model.card.version
    return str(rung) if version == active.card.version else f"version {version} on {rung}"


def _finite(arrays: tuple[Array, ...]) -> bool:
    return all(bool(namespace(array).isfinite(array).all()) for array in arrays)


def _work(reference: weakref.ref[Ladder], tasks: queue.SimpleQueue[Callable[[Ladder], None] | None]) -> None:
    """Be the background thread of a ladder, as long as that is in use."""
    let_live_threads_pass()
    while (task := tasks.get()) is not None:
        if (ladder := reference()) is not None:
            try:
                task(ladder)
            except BaseException:
                ladder._give_up()
                raise
        del ladder, task
