# SPDX-License-Identifier: Apache-2.0
"""OpenIGTLink sinks that run, and displays that are connected to them."""

import contextlib

import pytest
from displays import Display

from appliance.context import Context
from operators.sinks.openigtlink import Settings, make


@pytest.fixture
def connect():
    """Connect displays that are hung up after the test."""
    with contextlib.ExitStack() as stack:

        def connect(port):
            display = Display(port)
            stack.enter_context(display.socket)
            return display

        yield connect


@pytest.fixture
def start(tmp_path):
    sinks, alarms = [], {}

    def start(**settings):
        sink = make(Settings(port=0, **settings), Context("p", tmp_path, tmp_path, alarm=alarms.__setitem__))
        sink.alarms = alarms
        sinks.append(sink)
        return sink, sink.status()["port"]

    yield start
    for sink in sinks:
        sink.close()
