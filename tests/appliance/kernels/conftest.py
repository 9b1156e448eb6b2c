# SPDX-License-Identifier: Apache-2.0
"""The CPU build of the kernels, made from the very source that nvcc compiles."""

import ctypes
import subprocess

import numpy as np
import pytest

from appliance.kernels.build import SOURCE
from appliance.kernels.signatures import SIGNATURES

# Any undefined behaviour, a float that does not fit its integer included, ends the test's process.
FLAGS = ["-x", "c++", "-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
SANITIZER = ["-fsanitize=undefined,float-cast-overflow", "-fsanitize-undefined-trap-on-error"]
C_TYPES = {"P": ctypes.c_void_p, "i": ctypes.c_int32, "f": ctypes.c_float}
GUARD = 64  # elements around each output that nobody may touch


class CpuBuild:
    """Calls the kernels: arrays go as addresses, None as none."""

    def __init__(self, library):
        self._library = ctypes.CDLL(str(library))

    def __call__(self, name, *arguments):
        function = getattr(self._library, name)
        function.restype, function.argtypes = None, [C_TYPES[letter] for letter in SIGNATURES[name]]
        function(*(one.ctypes.data if isinstance(one, np.ndarray) else one for one in arguments))


class Guarded:
    """An output array inside a larger one; `check` says whether the rest of it was left alone."""

    def __init__(self, shape, dtype):
        n = int(np.prod(shape))
        self._whole = np.full(n + 2 * GUARD, 77, dtype)
        self.array = self._whole[GUARD : GUARD + n].reshape(shape)

    def check(self):
        assert (self._whole[:GUARD] == 77).all()
        assert (self._whole[-GUARD:] == 77).all()
        return self.array


@pytest.fixture(scope="session")
def cpu(tmp_path_factory):
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run(["g++", *FLAGS, *SANITIZER, "-o", str(library), str(SOURCE)], check=True)
    return CpuBuild(library)


@pytest.fixture
def guarded():
    return Guarded
