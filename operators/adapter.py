# SPDX-License-Identifier: Apache-2.0
"""The three Holoscan operators: SourceOp, StageOp, SinkOp.

Rule: with appliance/graph.py the only file that imports Holoscan. What travels on a port is a tuple of messages:
Holoscan hands a tuple on as the identical object, and a stage may answer one message with several.
"""

from __future__ import annotations

from typing import Any

from holoscan.conditions import AsynchronousCondition, AsynchronousEventState
from holoscan.core import ExecutionContext, InputContext, Operator, OperatorSpec, OutputContext

from operators.runners import Feed, SinkRunner, StageRunner


class SourceOp(Operator):
    """Takes messages from the feed that the source's own threads fill."""

    def __init__(self, fragment: Any, *args: Any, feed: Feed, **kwargs: Any) -> None:
        self._feed = feed
        self._event = AsynchronousCondition(fragment, name="fed")
        feed.wake = self._wake
        super().__init__(fragment, self._event, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.output("out")

    def start(self) -> None:
        self._event.event_state = AsynchronousEventState.EVENT_WAITING
        if len(self._feed) or self._feed.finished:
            self._wake()
        self._feed.started.set()

    def _wake(self) -> None:
        self._event.event_state = AsynchronousEventState.EVENT_DONE

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        # Waiting first, then taking: a message that arrives in between sets the event again and is not missed.
        self._event.event_state = AsynchronousEventState.EVENT_WAITING
        message = self._feed.take()
        if message is not None:
            op_output.emit((message,), "out")
        if self._feed.finished:
            self._event.event_state = AsynchronousEventState.EVENT_NEVER  # the graph drains, then ends by itself
        elif len(self._feed):
            self._wake()


class StageOp(Operator):
    """Runs one stage through its runner."""

    def __init__(self, fragment: Any, *args: Any, runner: StageRunner, **kwargs: Any) -> None:
        self._runner = runner
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("in")
        spec.output("out")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        out = [result for message in op_input.receive("in") for result in self._runner.process(message)]
        if out:
            op_output.emit(tuple(out), "out")


class SinkOp(Operator):
    """Hands over to one sink through its runner."""

    def __init__(self, fragment: Any, *args: Any, runner: SinkRunner, **kwargs: Any) -> None:
        self._runner = runner
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("in")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        for message in op_input.receive("in"):
            self._runner.process(message)
