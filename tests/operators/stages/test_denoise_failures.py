# SPDX-License-Identifier: Apache-2.0
"""A model that goes wrong while images flow: every image keeps coming, in order, marked where it was not denoised.

The adapter, the denoise stage and the inference layer are the real ones, with a scan of 60 images; the backends
compute on ONNX Runtime, and fail where the test says so.
"""

import dataclasses
import re
import shutil
import sys
import threading
import time
import types

import numpy as np
import pytest

from appliance import graph, settings
from appliance.context import Context
from appliance.errors import ModelError
from appliance.frames import End, Frame, Scan, read_only
from appliance.inference import open_model as opening
from appliance.inference.card import shipped_models
from appliance.inference.onnxruntime import OnnxRuntime
from operators import OperatorSettings
from operators.runners import StageRunner
from operators.stages.denoise import Settings, make

N_FRAMES = 60
WAIT_S = 30.0


class Backend:
    """ONNX Runtime that raises `failure`, or adds `error` to every output, once there is one."""

    on_gpu = False

    def __init__(self, name):
        self.name, self.failure, self.error, self.loading = name, None, 0.0, threading.Event()
        self.loading.set()

    def available(self, precision):
        return None

    def fingerprint(self):
        return self.name

    def load(self, model, signature, precision):
        assert self.loading.wait(WAIT_S)
        session, backend = OnnxRuntime().load(model, signature, precision), self

        class Session:
            takes, engine_digest = "host", backend.name.rjust(64, "0")

            def run(self, *arrays):
                if backend.failure:
                    raise backend.failure
                return tuple(output + np.float32(backend.error) for output in session.run(*arrays))

        return Session()


def frame(scan_id, sequence):
    return Frame(
        scan_id=scan_id,
        sequence=sequence,
        array=read_only(np.random.default_rng(sequence).random((64, 48), np.float32)),
        axes=("y", "x"),
        affine=np.eye(4),
        acquired_ns=0,
        received_ns=time.monotonic_ns(),
    )


def small_trial(folder):
    """Copy the shipped models and make their time trial a small one."""
    shutil.copytree(shipped_models(), folder)
    card = folder / "mr-denoise.yaml"
    card.write_text(re.sub("typical_px: .*", "typical_px: 32", card.read_text()))


class Pipeline:
    """One scan through the adapter's runner of the denoise stage."""

    def __init__(self, folder, recheck_every=0):
        self.alarms, models_dir = {}, folder / "models"
        if not models_dir.exists():
            small_trial(models_dir)
        context = Context(
            pipeline="mri-live",
            data_dir=folder,
            run_dir=folder,
            models_dir=models_dir,
            alarm=self.alarms.__setitem__,
            recheck_every=recheck_every,
        )
        chosen = Settings()
        self.runner = StageRunner("denoise", lambda: make(chosen, context), chosen, context.alarm)
        self.runner.warm_up()
        self.scan("s")

    def scan(self, scan_id):
        self.scan_id, self.sent, self.images = scan_id, 0, []
        self.runner.process(Scan(scan_id, "MR", ("y", "x"), (64, 48), "float32", 0))

    def send(self, n_frames):
        """Feed the next images; each must come out at once."""
        for _ in range(n_frames):
            given = frame(self.scan_id, self.sent)
            (out,) = self.runner.process(given)
            assert out.sequence == self.sent
            assert bool(out.marks) == (out.array is given.array)  # either denoised, or as it was and marked
            self.images.append(out)
            self.sent += 1
        return self.images[-n_frames:]

    def reasons(self):
        return [image.marks[0].reason if image.marks else "" for image in self.images]

    def status(self):
        return self.runner.status()

    def finish(self):
        self.send(N_FRAMES - self.sent)
        (end,) = self.runner.process(End(self.scan_id, "complete", n_frames=N_FRAMES))
        assert end.status == "complete" and [image.sequence for image in self.images] == list(range(N_FRAMES))


@pytest.fixture
def backends(monkeypatch):
    """The two backends of this site, best first."""
    both = Backend("first"), Backend("second")
    monkeypatch.setattr(opening, "candidates", lambda *_: [(backend, "f32") for backend in both])
    monkeypatch.setattr(opening, "WATCH_S", 0.02)
    return both


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"),
        RuntimeError("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable"),
        MemoryError("Out of memory allocating 8,388,608 bytes (allocated so far: 8,388,608 bytes)"),
        ModelError("openvino: run failed for shape (1, 2, 64, 48): internal; see the card's limits"),
    ],
    ids=["backend", "GPU gone", "out of memory", "model error"],
)
def test_the_backend_raises_while_frames_flow(tmp_path, backends, failure):
    """The next backend is held back: what flows meanwhile does not wait for it."""
    first, second = backends
    second.loading.clear()
    pipeline = Pipeline(tmp_path)
    assert not any(image.marks for image in pipeline.send(20))
    first.failure = failure
    pipeline.send(20)
    assert pipeline.reasons()[20:] == [
        f"mr-denoise: first f32 failed: {failure}",
        *[f"mr-denoise: preparing the next backend, first f32 failed: {failure}"] * 19,
    ]
    assert pipeline.alarms["model mr-denoise"].startswith("preparing the next backend, first f32 failed: ")
    assert pipeline.status()["model_state"] == "preparing" and pipeline.status()["passed_through"] == 20
    second.loading.set()
    until(lambda: pipeline.status()["model_state"] == "running")
    pipeline.finish()
    assert not any(pipeline.reasons()[40:])
    assert {image.provenance[-1].engine_digest[-6:] for image in pipeline.images[40:]} == {"second"}
    assert pipeline.status()["degraded"] == f"first f32: {failure}"
    assert pipeline.alarms["model mr-denoise"] == f"runs degraded on second f32: first f32: {failure}"


def test_when_the_last_backend_is_gone_the_rest_of_the_scan_passes_through(tmp_path, backends):
    pipeline = Pipeline(tmp_path)
    pipeline.send(10)
    for backend in backends:
        backend.failure = RuntimeError(f"no {backend.name}")
        pipeline.send(1)
        until(lambda: pipeline.status()["model_state"] != "preparing")
    pipeline.finish()
    last = pipeline.reasons()[-1]
    assert last == (
        "mr-denoise: no backend reproduces its golden output here (first f32: no first; second f32: no second); "
        "restore the model"
    )
    assert pipeline.status()["model_state"] == "pass-through"
    assert pipeline.alarms["model mr-denoise"].endswith("; images pass through unprocessed")


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_an_output_that_is_not_finite_never_becomes_an_image(tmp_path, backends, error):
    pipeline = Pipeline(tmp_path)
    pipeline.send(10)
    backends[0].error = error
    pipeline.send(1)
    assert pipeline.reasons()[-1] == "mr-denoise: first f32 gave values that are not finite"
    until(lambda: pipeline.status()["model_state"] == "running")
    pipeline.finish()
    assert all(np.isfinite(image.array).all() for image in pipeline.images)
    assert sum(bool(reason) for reason in pipeline.reasons()) == 1


def test_a_plausible_but_wrong_backend_is_found_by_the_re_check(tmp_path, backends):
    pipeline = Pipeline(tmp_path, recheck_every=4)
    pipeline.send(8)
    backends[0].error = 1e-3
    while pipeline.sent < N_FRAMES and pipeline.status()["backend"] != "second":
        pipeline.send(1)
        time.sleep(0.05)  # the re-check is outside the live path, and needs its time
    pipeline.finish()
    assert pipeline.status()["degraded"].startswith("first f32: a frame missed the reference by 0.00")
    assert "model mr-denoise" in pipeline.alarms


def test_the_model_file_is_corrupted_while_frames_flow(tmp_path, backends):
    """The proved copy in memory serves on, and people are told; a process that has none passes images through."""
    pipeline = Pipeline(tmp_path)
    pipeline.send(20)
    onnx = tmp_path / "models" / "mr-denoise.onnx"
    good = onnx.read_bytes()
    onnx.write_bytes(good[:30_000])
    pipeline.send(10)
    until(lambda: "sha256 of mr-denoise.onnx is" in pipeline.alarms["model mr-denoise"])
    backends[0].failure = RuntimeError("gone")  # the next backend is made from memory, too
    pipeline.send(1)
    until(lambda: pipeline.status()["model_state"] == "running")
    pipeline.finish()
    assert sum(bool(reason) for reason in pipeline.reasons()) == 1

    backends[0].failure = None
    opening._opened.clear()  # as after a restart
    restarted = Pipeline(tmp_path)
    restarted.finish()
    digest = "mr-denoise.yaml: sha256 of mr-denoise.onnx is "
    assert all(digest in reason for reason in restarted.reasons())
    assert "model mr-denoise" in restarted.alarms
    onnx.write_bytes(good)
    until(lambda: not restarted.alarms["model mr-denoise"])
    restarted.scan("t")
    restarted.finish()
    assert not any(restarted.reasons())
    assert dataclasses.asdict(restarted.images[0].provenance[-1])["model"] == "mr-denoise"


class Camera:
    """60 frames; the first backend fails after 20, the second may be loaded after 40. Nothing is waited for."""

    def __init__(self, backends, runner):
        self.backends, self.runner, self.halt = backends, runner, threading.Event()

    def run(self, emit):
        first, second = self.backends
        emit(Scan("s", "MR", ("y", "x"), (64, 48), "float32", 0))
        for n in range(N_FRAMES):
            if n == 20:
                first.failure = RuntimeError("the GPU is gone")
            if n == 40:
                second.loading.set()
                until(lambda: self.runner().status()["model_state"] == "running")
            emit(frame("s", n))
            until(lambda n=n: self.runner().n_frames > n)  # else the failure would meet frames that wait
        emit(End("s", "complete", n_frames=N_FRAMES))
        self.halt.wait(WAIT_S)

    def stop(self):
        self.halt.set()

    def status(self):
        return {}


class Screen:
    def __init__(self):
        self.images, self.ages_s, self.ended = [], [], threading.Event()

    def begin(self, scan):
        pass

    def frame(self, image):
        self.images.append(image)
        self.ages_s.append((time.monotonic_ns() - image.received_ns) / 1e9)

    def end(self, end):
        self.ended.set()

    def status(self):
        return {}


def test_in_the_graph_the_backend_raises_and_every_frame_keeps_coming_within_the_deadline(
    tmp_path, backends, monkeypatch
):
    """The next backend cannot load for 20 frames: were one of them to wait for it, it would wait for ever."""
    small_trial(tmp_path / "models")
    backends[1].loading.clear()
    screen, built = Screen(), []
    camera = Camera(backends, lambda: built[0].stages[0])
    for kind, name, thing in (("sources", "camera", camera), ("sinks", "screen", screen)):
        module = types.ModuleType(f"operators.{kind}.{name}")
        module.make = lambda settings, context, thing=thing: thing
        monkeypatch.setitem(sys.modules, module.__name__, module)
    pipeline = settings.Pipeline(
        source=settings.Operator(name="camera", settings=OperatorSettings()),
        stages=(settings.Operator(name="denoise", settings=Settings()),),
        sinks=(settings.Operator(name="screen", settings=OperatorSettings()),),
        deadline_ms=1000 * WAIT_S,
    )
    alarms = {}
    context = Context("p", tmp_path, tmp_path, models_dir=tmp_path / "models", alarm=alarms.__setitem__)
    built.append(graph.Graph(pipeline, context))
    stopping = threading.Event()
    threading.Thread(target=lambda: (screen.ended.wait(WAIT_S), stopping.set())).start()
    assert graph.run_graph(built[0], stopping) == ""
    assert [image.sequence for image in screen.images] == list(range(N_FRAMES))
    assert [bool(image.marks) for image in screen.images] == [False] * 20 + [True] * 20 + [False] * 20
    assert all("first f32 failed: the GPU is gone" in image.marks[0].reason for image in screen.images[20:40])
    assert built[0].status()["stages"]["denoise"]["deadline_misses"] == 0 and max(screen.ages_s) < WAIT_S
    assert alarms["model mr-denoise"] == "runs degraded on second f32: first f32: the GPU is gone"
