# SPDX-License-Identifier: Apache-2.0
"""How busy this machine is: processor, memory, disk, GPU. From /proc and, where there is one, nvidia-smi."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

_KEPT_S = 2.0
_GPU_TIMEOUT_S = 3.0
_GPU_FIELDS = ("name", "utilization.gpu", "memory.used", "memory.total", "temperature.gpu")


class Machine:
    """Thread-safe; an answer serves everybody who asks within two seconds."""

    def __init__(self, data_dir: Path, reserve_gb: float) -> None:
        self._data_dir, self._reserve_gb = data_dir, reserve_gb
        self._lock = threading.Lock()
        self._ticks = _ticks()
        self._newest: tuple[float, dict[str, Any]] = (-_KEPT_S, {})

    def read(self) -> dict[str, Any]:
        """Return plain values. `busy_percent` is over the time since it was last asked for."""
        with self._lock:
            if time.monotonic() - self._newest[0] > _KEPT_S:
                self._newest = (time.monotonic(), self._read())
            return self._newest[1]

    def _read(self) -> dict[str, Any]:
        before, self._ticks = self._ticks, _ticks()
        busy, total = (new - old for new, old in zip(self._ticks, before, strict=True))
        return {
            "n_cpus": os.cpu_count(),
            "busy_percent": round(100 * busy / total, 1) if total else None,
            "load": [round(value, 2) for value in os.getloadavg()],
            "memory": _memory(),
            "disk": self._disk(),
            "gpus": _gpus(),
        }

    def _disk(self) -> dict[str, float]:
        folder = self._data_dir
        while not folder.exists():
            folder = folder.parent
        usage = shutil.disk_usage(folder)
        return {"total_gb": _gb(usage.total), "free_gb": _gb(usage.free), "reserve_gb": self._reserve_gb}


def _gb(n_bytes: float) -> float:
    return round(n_bytes / 1e9, 1)


def _ticks() -> tuple[int, int]:
    """Return (busy, all) processor time since boot, proc(5)."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, idle, io_wait, *rest = (int(word) for word in first.split()[1:9])
    busy = user + nice + system + sum(rest)
    return busy, busy + idle + io_wait


def _memory() -> dict[str, float]:
    said = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(said[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return {"total_gb": _gb(total), "available_gb": _gb(available)}


def _gpus() -> list[dict[str, Any]]:
    """Return what nvidia-smi says, the word "?" where it knows nothing; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_TIMEOUT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [{"name": "nvidia-smi does not answer"}]
    return [_gpu([word.strip() for word in line.split(",")]) for line in said.splitlines()]


def _gpu(words: list[str]) -> dict[str, Any]:
    name, *values = words
    numbers = [float(value) if value.replace(".", "", 1).isdecimal() else None for value in values]
    busy, used, total, celsius = (numbers + [None] * 4)[:4]
    return {"name": name, "busy_percent": busy, "used_mib": used, "total_mib": total, "celsius": celsius}
