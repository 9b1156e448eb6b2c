# SPDX-License-Identifier: Apache-2.0
"""Where to compute: what `site.device` comes to on this machine."""

from __future__ import annotations

import ctypes

from appliance.errors import ConfigError


def count_gpus() -> int:
    """Return the number of CUDA devices the driver offers; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    n_devices = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(n_devices)) != 0:
        return 0
    return n_devices.value


def choose_device(wanted: str) -> str:
    """Return "gpu" or "cpu" for "auto", "gpu" or "cpu". Raises ConfigError for "gpu" without one."""
    if wanted == "cpu":
        return "cpu"
    if count_gpus():
        return "gpu"
    if wanted == "gpu":
        raise ConfigError("site.device: 'gpu' is asked for and no CUDA driver or device answers; use 'auto' or 'cpu'")
    return "cpu"
