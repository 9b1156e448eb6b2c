# SPDX-License-Identifier: Apache-2.0
"""Ask a child process about the GPU: a broken driver or library then kills the child, not the scan."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import NamedTuple

_TIMEOUT_S = 60.0  # the first start of a driver without its persistence daemon takes seconds

_FIND = """
import ctypes, json
cuda = ctypes.CDLL("libcuda.so.1")
version, count, major, minor = (ctypes.c_int() for _ in range(4))
name = ctypes.create_string_buffer(100)
for call in (
    lambda: cuda.cuInit(0),
    lambda: cuda.cuDriverGetVersion(ctypes.byref(version)),
    lambda: cuda.cuDeviceGetName(name, 100, 0),
    lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, 0),
    lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, 0),
):
    code = call()
    if code:
        raise SystemExit(f"CUDA driver error {code}")
print(json.dumps([name.value.decode(), f"{major.value}.{minor.value}", version.value]))
"""


class Gpu(NamedTuple):
    """The first GPU of this machine."""

    name: str
    capability: str  # "9.0"
    driver: int  # CUDA version of the driver, 13000 for 13.0

    @property
    def sm(self) -> str:
        """Its architecture as compilers call it: "sm_90"."""
        return f"sm_{self.capability.replace('.', '')}"

    def __str__(self) -> str:
        return f"{self.name} {self.sm} driver {self.driver}"


def last_line(text: str, otherwise: str) -> str:
    """Return the last line of what a child process printed."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else otherwise


def ask_child(code: str) -> tuple[str, str | None]:
    """Run Python `code` in a fresh process; return (last line printed, None) or ("", why it failed)."""
    try:
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {_TIMEOUT_S:.0f} s"
    if child.returncode:
        return "", last_line(child.stderr, f"ended with {child.returncode}")
    return last_line(child.stdout, ""), None


@cache
def find_gpu() -> Gpu | str:
    """Return the GPU, or why there is none. Asked once per process."""
    answer, failure = ask_child(_FIND)
    return f"no usable GPU: {failure}" if failure else Gpu(*json.loads(answer))
