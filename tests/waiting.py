# SPDX-License-Identifier: Apache-2.0
"""Waiting for what the running appliance does in its own time."""

import time

DEADLINE_S = 90  # far beyond what it takes; only a failure reaches it


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE_S} s for {what}"
        time.sleep(0.05)
