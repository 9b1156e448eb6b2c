# SPDX-License-Identifier: Apache-2.0
"""Load the kernels on a GPU and start them, through pycuda. Not yet run on a GPU: none was there.

pycuda builds only where the CUDA toolkit is, and needs the driver even to be imported: import this file only after
`device.count_gpus` found one. The primary context is the one that cupy, TensorRT and ONNX Runtime use too, so that
their arrays and streams are valid here and ours there.
"""

from __future__ import annotations

from typing import Any

import pycuda.driver as cuda

from appliance.errors import ModelError
from appliance.kernels.signatures import FATBIN, SIGNATURES

_BLOCK = (32, 8, 1)  # a warp reads 32 neighbouring columns
_MOST_BLOCKS = 65_535  # of a grid in y; each kernel goes on in steps of the grid


class Kernels:
    """The kernels on the GPU number `device`, loaded once. Use it from any thread. Raises ModelError."""

    def __init__(self, device: int = 0) -> None:
        cuda.init()
        gpu = cuda.Device(device)
        self._context = gpu.retain_primary_context()
        self._context.push()
        try:
            self._module = cuda.module_from_buffer(FATBIN.read_bytes())
            self._functions = {name: self._module.get_function(name).prepare(SIGNATURES[name]) for name in SIGNATURES}
        except cuda.Error as error:
            major, minor = gpu.compute_capability()
            raise ModelError(
                f"kernels: {gpu.name()} (sm_{major}{minor}) does not take {FATBIN.name}: {error}; "
                "restore the file, or set site.device to cpu"
            ) from error
        finally:
            cuda.Context.pop()

    def start(self, name: str, n_y: int, n_x: int, stream: Any, *arguments: float) -> None:
        """Put kernel `name` on `stream` (pycuda's), with one thread for each of `n_y` × `n_x` pixels; returns at once.

        `arguments` are in the order of the source: addresses (0 for none), numbers. Raises ModelError.
        """
        grid = (-(-n_x // _BLOCK[0]), min(-(-n_y // _BLOCK[1]), _MOST_BLOCKS))
        self._context.push()
        try:
            self._functions[name].prepared_async_call(grid, _BLOCK, stream, *arguments)
        except cuda.Error as error:
            raise ModelError(f"kernels: {name} did not start: {error}; see the GPU's kernel log") from error
        finally:
            cuda.Context.pop()
