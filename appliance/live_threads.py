# SPDX-License-Identifier: Apache-2.0
"""Which threads of a real-time process go first."""

from __future__ import annotations

import os

_BACKGROUND_PRIORITY = 1  # where the process is real-time: above other processes, below everything live


def let_live_threads_pass() -> None:
    """Put the calling thread below the live ones of a real-time process, and the threads that it will start."""
    if os.sched_getscheduler(0) == os.SCHED_FIFO:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_BACKGROUND_PRIORITY))
