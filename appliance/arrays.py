# SPDX-License-Identifier: Apache-2.0
"""numpy or cupy: the array decides; the only door to the device."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Array


def namespace(array: Array) -> ModuleType:
    """Return the module (numpy or cupy) that `array` belongs to."""
    if isinstance(array, np.ndarray):
        return np
    cupy = sys.modules.get("cupy")  # whoever holds a cupy array has imported it
    if cupy is not None and isinstance(array, cupy.ndarray):
        return cupy
    raise ValueError(f"namespace: expected a numpy or cupy array, got {type(array).__name__!r}")


def to_host(array: Array) -> NDArray[Any]:
    """Return `array` as numpy; the same object when it already is."""
    return array if isinstance(array, np.ndarray) else namespace(array).asnumpy(array)


def to_device(array: NDArray[Any]) -> Array:
    """Return a copy of `array` on the current CUDA device (cupy is imported here, and only here)."""
    import cupy

    return cupy.asarray(array)
