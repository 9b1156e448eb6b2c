# SPDX-License-Identifier: Apache-2.0
"""The Holoscan graph: every sequence number arrives, in order, with End, whatever a stage does."""

import sys
import threading
import time
import types
from dataclasses import replace

import numpy as np
import pytest

from appliance import graph
from appliance.context import Context
from appliance.errors import ConfigError
from appliance.frames import End, Frame, Scan, read_only
from appliance.settings import Operator, Pipeline
from operators import OperatorSettings

N_FRAMES = 150


class Camera:
    """Emits frames as fast as the graph takes them, then waits to be stopped."""

    def __init__(self):
        self.halt = threading.Event()

    def run(self, emit):
        emit(Scan("a", "US", ("y", "x"), (4, 4), "float32", 0))
        for n in range(N_FRAMES):
            array = read_only(np.full((4, 4), n, np.float32))
            received_ns = time.monotonic_ns()
            emit(
                Frame(
                    scan_id="a",
                    sequence=n,
                    array=array,
                    axes=("y", "x"),
                    affine=np.eye(4),
                    acquired_ns=0,
                    received_ns=received_ns,
                )
            )
        emit(End("a", "complete", n_frames=N_FRAMES))
        self.halt.wait()

    def stop(self):
        self.halt.set()

    def status(self):
        return {}


class BrokenCamera(Camera):
    def run(self, emit):
        emit(Scan("a", "US", ("y", "x"), (4, 4), "float32", 0))
        raise OSError("cable out")


class OddFails:
    def begin(self, scan):
        return scan

    def frame(self, frame):
        if frame.sequence % 2:
            raise ValueError("odd")
        return replace(frame, array=frame.array + 1)

    def end(self):
        return []

    def status(self):
        return {}


class Recorder:
    def __init__(self):
        self.got = []
        self.done = threading.Event()

    def begin(self, scan):
        self.got.append(scan)

    def frame(self, frame):
        self.got.append(frame)

    def end(self, end):
        self.got.append(end)
        self.done.set()

    def status(self):
        return {}


@pytest.fixture
def pipeline_of(monkeypatch):
    """Build a pipeline from objects instead of files."""

    def build(source, stages, sinks, **settings):
        def operator(kind, thing):
            name = f"test_{id(thing)}"
            module = types.ModuleType(f"operators.{kind}.{name}")
            module.make = lambda settings, context: thing() if isinstance(thing, type) else thing
            monkeypatch.setitem(sys.modules, module.__name__, module)
            return Operator(name=name, settings=OperatorSettings())

        return Pipeline(
            source=operator("sources", source),
            stages=tuple(operator("stages", stage) for stage in stages),
            sinks=tuple(operator("sinks", sink) for sink in sinks),
            **settings,
        )

    return build


@pytest.fixture
def context(tmp_path):
    return Context(pipeline="p", data_dir=tmp_path, run_dir=tmp_path)


@pytest.mark.parametrize("scheduler", ["greedy", "event_based"])
def test_every_frame_arrives_at_every_sink_in_order_although_a_stage_fails(pipeline_of, context, scheduler):
    sinks = [Recorder(), Recorder()]
    pipeline = pipeline_of(Camera, [OddFails, OddFails], sinks, scheduler=scheduler, deadline_ms=0)
    built = graph.Graph(pipeline, context)
    stopping = threading.Event()

    def stop_when_done():
        for sink in sinks:
            sink.done.wait(20)
        stopping.set()

    threading.Thread(target=stop_when_done).start()
    assert graph.run_graph(built, stopping) == ""
    for sink in sinks:
        scan, *frames, end = sink.got
        assert scan.scan_id == "a"
        assert [frame.sequence for frame in frames] == list(range(N_FRAMES))
        assert [frame.array[0, 0] for frame in frames] == [n if n % 2 else n + 2 for n in range(N_FRAMES)]
        assert all(len(frame.marks) == (2 if frame.sequence % 2 else 0) for frame in frames)
        assert end == End("a", "complete", n_frames=N_FRAMES)
    assert sinks[0].got[1] is sinks[1].got[1]  # by reference, no copies
    assert built.status()["frames"]["in"] == N_FRAMES
    assert built.status()["frames"]["waiting"] == 0


def test_stopping_drains_what_the_source_has_emitted(pipeline_of, context):
    class Slow(Recorder):
        def frame(self, frame):
            time.sleep(0.002)
            super().frame(frame)

    sink = Slow()
    built = graph.Graph(pipeline_of(Camera, [], [sink], queue_frames=64), context)
    stopping = threading.Event()
    stopping.set()
    assert graph.run_graph(built, stopping) == ""
    assert sink.got[-1] == End("a", "complete", n_frames=N_FRAMES)
    assert [frame.sequence for frame in sink.got[1:-1]] == list(range(N_FRAMES))


def test_a_source_that_fails_ends_the_pipeline_with_its_reason(pipeline_of, context):
    sink = Recorder()
    built = graph.Graph(pipeline_of(BrokenCamera, [], [sink]), context)
    assert graph.run_graph(built, threading.Event()) == "cable out"
    assert [message.scan_id for message in sink.got] == ["a"]


def test_wiring_that_holoscan_dropped_is_noticed(pipeline_of, context):
    built = graph.Graph(pipeline_of(Camera, [OddFails], [Recorder()]), context)
    app = graph._PipelineApp(built)
    app.compose_graph()
    app.wiring["source"].add("stage-that-was-dropped")
    with pytest.raises(ConfigError, match=r"graph: source leads to \['stage-test_\d+'\], meant"):
        graph._check_wiring(app)


def test_the_second_operator_of_a_name_is_numbered():
    twice = tuple(Operator(name=name, settings=None) for name in ("denoise", "detect", "denoise"))
    assert graph._unique_names(twice) == ["denoise", "detect", "denoise-2"]
