# SPDX-License-Identifier: Apache-2.0
"""What an installed appliance, whose own files it may not write, compiles is kept in its data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.run_child import keep_compiled

KERNEL = """
import sys; sys.path.insert(0, sys.argv[1])
import kernel
assert kernel.twice(21) == 42
"""


@pytest.mark.parametrize("writable", [True, False])
def test_compiled_code_is_kept_where_it_may_be_written(tmp_path, monkeypatch, writable):
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "before")
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    keep_compiled(tmp_path)
    assert os.environ.get("NUMBA_CACHE_DIR") == (None if writable else str(tmp_path / "compiled"))


def test_numba_takes_that_folder(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    lines = ["import numba", "@numba.njit('int64(int64)', cache=True)", "def twice(n):", "    return 2 * n", ""]
    (source / "kernel.py").write_text("\n".join(lines))
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "compiled")}
    subprocess.run([sys.executable, "-c", KERNEL, str(source)], env=environment, check=True)
    assert list(Path(tmp_path / "compiled").rglob("*.nbi")) and not list(source.rglob("*.nbi"))
