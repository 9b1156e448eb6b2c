# SPDX-License-Identifier: Apache-2.0
"""Ray casting on a GPU, without one: its kernels in numba's simulator, and compiled for every architecture."""

import subprocess
import sys
from types import SimpleNamespace

import numba.cuda.dispatcher
import numpy as np
import pytest
from numba import cuda, types
from numba.cuda.cudadrv.driver import CudaAPIError

from appliance.device import count_gpus
from appliance.render import on_gpu, ray_cast

ARCHITECTURES = [((8, 0), types.uint8), ((8, 0), types.int16), ((9, 0), types.int16), ((12, 0), types.int16)]
FIRST, END = 24, 40  # rows that are drawn: not the first, and not a whole picture

DRAW_IN_THE_SIMULATOR = f"""
import sys
import numpy as np
from appliance.render import on_gpu
gpu = on_gpu.OnGpu()
colours, highest = on_gpu.draw_known(gpu, ({FIRST}, {END}))
np.savez(sys.argv[1], colours=colours, highest=highest)
"""


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """What the kernels draw as plain Python, a thread for each ray."""
    file = tmp_path_factory.mktemp("gpu") / "drawn.npz"
    plain = {"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", DRAW_IN_THE_SIMULATOR, file], check=True, env=plain, timeout=120)
    return np.load(file)


def test_the_kernels_draw_what_the_cpu_draws(simulated):
    colours, highest = on_gpu.draw_known(ray_cast, (0, 64))
    assert np.abs(simulated["colours"][:, FIRST:END].astype(int) - colours[:, FIRST:END]).max() <= 1, "rounding"
    assert simulated["highest"][FIRST:END] == pytest.approx(highest[FIRST:END], abs=1e-3)


def test_other_rows_are_left_alone(simulated):
    for drawn in (*simulated["colours"], simulated["highest"]):
        assert (drawn[:FIRST] == 7).all()
        assert (drawn[END:] == 7).all()


def test_the_known_scene_has_something_to_tell_apart():
    colours, highest = on_gpu.draw_known(ray_cast, (0, 64))
    assert colours[:, FIRST:END].max() > 100
    assert 0.2 < (colours[0].max(axis=2) > 0).mean() < 0.9
    assert np.abs(colours[0].astype(int) - colours[1]).max() > 10, "two gradients"
    assert min(len(np.unique(colours)), len(np.unique(highest))) > 100


def test_without_a_gpu_the_cpu_draws_and_the_reason_is_told():
    if cuda.is_available():
        pytest.skip("there is one")
    assert on_gpu.find_gpu() == (None, "render: no CUDA device answers")


@pytest.mark.gpu
@pytest.mark.skipif(count_gpus() == 0, reason="no CUDA device answers")
def test_a_gpu_is_used_after_it_drew_the_known_scene():
    gpu, reason = on_gpu.find_gpu()
    assert (gpu is None, reason) == (False, "")


def test_a_gpu_that_draws_something_else_is_not_used(monkeypatch):
    class Wrong(on_gpu.OnGpu):
        cast_highest = staticmethod(ray_cast.cast_highest)

        def cast_colours(self, *given):
            ray_cast.cast_colours(*given)
            given[-1][30, 30, 1] ^= 4

    monkeypatch.setattr(on_gpu, "OnGpu", Wrong)
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    gpu, reason = on_gpu.find_gpu()
    assert gpu is None
    assert reason == "render: the GPU's picture differs by 4 of 255 from the CPU's; the CPU draws, report it"


def test_a_gpu_that_fails_leaves_the_rest_to_the_cpu(monkeypatch):
    def fail(*_):
        raise CudaAPIError(2, "out of memory")

    gpu = on_gpu.OnGpu()
    monkeypatch.setattr(cuda, "device_array", fail)
    for drawn, expected in zip(on_gpu.draw_known(gpu, (0, 64)), on_gpu.draw_known(ray_cast, (0, 64)), strict=True):
        np.testing.assert_array_equal(drawn, expected)
    assert gpu.fault.startswith("render: the GPU failed ([2] out of memory); the CPU draws until")


@pytest.mark.parametrize(("architecture", "stored"), ARCHITECTURES)
def test_the_kernels_compile(architecture, stored, monkeypatch):
    here = SimpleNamespace(compute_capability=architecture)  # whoever calls compiled functions is asked for it
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: here)
    number, integer = types.float32, types.int32

    def array(of, n_dim):
        return types.Array(of, n_dim, "C")

    space = [array(stored, 1), array(types.int64, 1), array(types.uint8, 3), array(stored, 3)]
    space += [array(integer, 2), array(integer, 2)]
    plane, line = array(number, 2), array(number, 1)
    colours = types.void(*space, plane, plane, plane, line, types.int64, array(types.uint8, 3))
    highest = types.void(*space, plane, number, types.int64, plane)
    for kernel, signature in ((on_gpu.cast_colours, colours), (on_gpu.cast_highest, highest)):
        text, _ = cuda.compile_ptx(kernel.py_func, signature, cc=architecture)
        assert f".target sm_{architecture[0]}{architecture[1]}" in text
