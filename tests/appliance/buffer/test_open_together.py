# SPDX-License-Identifier: Apache-2.0
"""The processes of one site start at the same moment, and the first of all makes the database."""

import subprocess
import sys


def test_processes_that_start_together_open_one_new_buffer(tmp_path):
    def start(n):
        code = (
            f"from pathlib import Path; from appliance.buffer import Buffer; Buffer(Path({str(tmp_path / str(n))!r}))"
        )
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)

    started = [start(n) for n in range(4) for _ in range(4)]
    assert [one.communicate(timeout=60)[1] for one in started] == [b""] * 16
