# SPDX-License-Identifier: Apache-2.0
"""Pipeline settings -> Holoscan Application, and the life of one pipeline process.

Rule: with operators/adapter.py the only file that imports Holoscan.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cuda.pathfinder import load_nvidia_dynamic_lib

os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "ERROR")  # its warnings without a GPU say nothing a site can act on
load_nvidia_dynamic_lib("cudart")  # Holoscan's wheel needs it even for a graph on the CPU, and does not bring it
with warnings.catch_warnings():
    # Holoscan warns here about a small stack; the launcher sets RLIMIT_STACK where it may.
    warnings.simplefilter("ignore", RuntimeWarning)
    from holoscan.core import Application
    from holoscan.schedulers import EventBasedScheduler, GreedyScheduler

from appliance.context import Context
from appliance.device import choose_device
from appliance.errors import ConfigError
from appliance.settings import Operator, Pipeline, Settings
from operators import Source
from operators.adapter import SinkOp, SourceOp, StageOp
from operators.runners import Activity, Feed, SinkRunner, StageRunner

if TYPE_CHECKING:
    from appliance.child import Child

log = logging.getLogger(__name__)

STUCK_AFTER_S = 20.0  # an operator that computes for longer is stuck; loading a model happens before the graph runs
DRAIN_S = 10.0
REALTIME_PRIORITY = 20  # above every ordinary process, below the kernel's own threads (50)


def make_operator(kind: str, operator: Operator, context: Context) -> Any:
    """Call `make` of operators/KIND/NAME.py."""
    module = importlib.import_module(f"operators.{kind}.{operator.name}")
    return module.make(operator.settings, context)


def _unique_names(operators: tuple[Operator, ...]) -> list[str]:
    """Name the operators of one kind: the second `denoise` of a pipeline is "denoise-2"."""
    seen: dict[str, int] = {}
    names = []
    for operator in operators:
        seen[operator.name] = seen.get(operator.name, 0) + 1
        names.append(operator.name if seen[operator.name] == 1 else f"{operator.name}-{seen[operator.name]}")
    return names


class Graph:
    """One pipeline: its source, runners and feed, and the Holoscan application around them."""

    def __init__(self, pipeline: Pipeline, context: Context) -> None:
        self.pipeline = pipeline
        self.activity = Activity()
        self.feed = Feed(pipeline.queue_frames)
        self.failure = ""
        self.stages = [
            StageRunner(
                name=name,
                make=partial(make_operator, "stages", operator, context),
                settings=operator.settings,
                alarm=context.alarm,
                activity=self.activity,
                deadline_ns=int(pipeline.deadline_ms * 1e6),
            )
            for name, operator in zip(_unique_names(pipeline.stages), pipeline.stages, strict=True)
        ]
        self.sinks = [
            SinkRunner(name, make_operator("sinks", operator, context), context.alarm, self.activity)
            for name, operator in zip(_unique_names(pipeline.sinks), pipeline.sinks, strict=True)
        ]
        self.feed.backlogs = [runner.sink.backlog for runner in self.sinks if hasattr(runner.sink, "backlog")]
        for stage in self.stages:
            stage.warm_up()
        self.source: Source = make_operator("sources", pipeline.source, replace(context, is_through=self.is_through))
        self._source_thread = threading.Thread(target=self._run_source, name="source", daemon=True)

    def _run_source(self) -> None:
        try:
            self.source.run(self.feed.put)
        except Exception as error:  # the process's main acts on it: drain, then end as failed
            log.exception("source %s failed", self.pipeline.source.name)
            self.failure = str(error) or type(error).__name__
        self.feed.close()

    def is_through(self, scan_id: str) -> bool:
        """Whether every sink has had the End of this scan and nothing waits in a durable one."""
        return all(runner.has_ended(scan_id) for runner in self.sinks)

    def application(self) -> Application:
        """Build the Holoscan application and check that it is wired as meant."""
        app = _PipelineApp(self)
        app.compose_graph()
        _check_wiring(app)
        return app

    def start(self) -> None:
        """Let the source run."""
        self._source_thread.start()

    def stop(self) -> None:
        """Stop the source; what it has emitted drains through the graph."""
        self.source.stop()
        self._source_thread.join(DRAIN_S)
        self.feed.close()

    def close(self) -> None:
        """Let every sink flush, each within its own deadline."""
        for runner in self.sinks:
            close = getattr(runner.sink, "close", None)
            if close:
                close()

    def status(self) -> dict[str, Any]:
        """Plain values of the whole pipeline."""
        return {
            "source": {"name": self.pipeline.source.name, **self.source.status()},
            "frames": {
                "in": self.feed.n_frames_in,
                "waiting": len(self.feed),
                "latency_ms": self.feed.latency.summary_ms(),
            },
            "stages": {runner.name: runner.status() for runner in self.stages},
            "sinks": {runner.name: runner.status() for runner in self.sinks},
        }


class _PipelineApp(Application):  # type: ignore[misc]
    """Source, stages in a row, and every sink behind the last of them."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.wiring: dict[str, set[str]] = {}
        super().__init__([""])

    def compose(self) -> None:
        last: Any = SourceOp(self, name="source", feed=self._graph.feed)
        for stage in self._graph.stages:
            last = self._connect(last, StageOp(self, name=f"stage-{stage.name}", runner=stage))
        for sink in self._graph.sinks:
            self._connect(last, SinkOp(self, name=f"sink-{sink.name}", runner=sink))
        self.scheduler(_scheduler(self, self._graph.pipeline.scheduler))

    def _connect(self, upstream: Any, downstream: Any) -> Any:
        self.add_flow(upstream, downstream, {("out", "in")})
        self.wiring.setdefault(upstream.name, set()).add(downstream.name)
        return downstream


def _scheduler(app: Application, name: str) -> Any:
    if name == "greedy":
        return GreedyScheduler(app, name="greedy")
    return EventBasedScheduler(app, worker_thread_number=2, name="event_based")


def _check_wiring(app: Any) -> None:
    """Compare Holoscan's graph with what was meant: it only logs some wrong flows, and drops them."""
    nodes = {node.name: node for node in app.graph.get_nodes()}
    for upstream, meant in app.wiring.items():
        found = {node.name for node in app.graph.get_next_nodes(nodes[upstream])} if upstream in nodes else set()
        if found != meant:
            raise ConfigError(f"graph: {upstream} leads to {sorted(found)}, meant {sorted(meant)}; report this")


def make_context(settings: Settings, name: str, child: Child) -> Context:
    """Gather what operators may know."""
    return Context(
        pipeline=name,
        data_dir=settings.site.data_dir,
        run_dir=settings.site.sockets,
        device=choose_device(settings.site.device),
        models_dir=settings.models.dir,
        recheck_every=settings.models.recheck_every,
        destinations=tuple(settings.destinations),
        reserve_bytes=int(settings.buffer.reserve_gb * 1e9),
        alarm=child.alarm,
    )


def run_graph(graph: Graph, stopping: threading.Event) -> str:
    """Run until told to stop or until the graph ends; return why it failed, or an empty text."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    running = graph.application().run_async()
    while not graph.feed.started.wait(0.05) and not running.done():
        continue
    # Holoscan has now put its own handlers in place, and they would end the graph with frames still in it.
    for number, handler in handlers.items():
        signal.signal(number, handler)
    graph.start()
    while not stopping.is_set() and not running.done():
        stopping.wait(0.2)
    graph.stop()
    failure = _drained(running) or graph.failure
    graph.close()
    return failure


def _drained(running: Any) -> str:
    """Wait for the closed feed to drain; return why the graph failed, or an empty text."""
    deadline = time.monotonic() + DRAIN_S
    while not running.done():
        if time.monotonic() > deadline:
            return f"the graph did not drain within {DRAIN_S:.0f} s"
        time.sleep(0.01)
    error = running.exception()
    return "" if error is None else f"the graph ended: {error}"


def take_realtime_priority() -> bool:
    """Put this process, and the threads it will start, under SCHED_FIFO; say whether that is permitted.

    Measured on two saturated cores: p99 of a frame falls from tens of milliseconds to one.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(REALTIME_PRIORITY))
    except PermissionError:
        return False
    return True


def keep_python_out_of_the_way() -> None:
    """Let the graph's thread have the GIL soon, and the garbage collector skip what stays for ever.

    Measured with a busy Python thread beside the graph: p99 of a hand-over falls from 68 to 7 ms at 0.5 ms.
    """
    sys.setswitchinterval(0.0005)
    gc.collect()
    gc.freeze()


def run_pipeline(settings: Settings, name: str, child: Child) -> None:
    """Run one pipeline until the child is told to stop, then end the process: 0, or 1 when it failed.

    Holoscan's threads can keep a Python process from ending, so it is left by `os._exit` once all is flushed.
    """
    context = make_context(settings, name, child)
    realtime = take_realtime_priority()
    scheduling = "real-time" if realtime else "ordinary, real-time priority is not permitted (LimitRTPRIO)"
    log.info("pipeline %s: computing on the %s, priority %s", name, context.device, scheduling)
    graph = Graph(settings.pipelines[name], context)
    keep_python_out_of_the_way()
    fixed = {"pipeline": name, "device": context.device, "realtime": realtime}
    child.serve(lambda: {**fixed, "stuck": graph.activity.stuck(STUCK_AFTER_S), **graph.status()})
    failure = run_graph(graph, child.stopping)
    if failure:
        log.error("pipeline %s: %s", name, failure)
    logging.shutdown()
    os._exit(1 if failure else 0)
