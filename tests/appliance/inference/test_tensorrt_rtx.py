# SPDX-License-Identifier: Apache-2.0
"""Engines of the real TensorRT-RTX, compiled without a GPU. None is run here: that takes a GPU, and its golden test."""

import ctypes
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.errors import ModelError
from appliance.inference import tensorrt as tensorrt_backend
from appliance.inference.build_engine import build_engine, compile_here
from appliance.inference.card import read_model, shipped_models
from appliance.inference.gpu import Gpu, find_gpu
from appliance.inference.tensorrt import TensorRT

pytest.importorskip("tensorrt_rtx_bindings", reason="requirements/dev.txt is not installed")

NAMES = sorted(path.stem for path in shipped_models().glob("*.yaml"))
GPUS = ["sm_86", "sm_89", "sm_120"]
NO_RANDOMISATION = 0x0040000
no_gpu = pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")


def build(name="mr-denoise", sm="sm_86", change=bytes, signature=None):
    model = read_model(name, shipped_models())
    return build_engine("tensorrt_rtx", change(model.onnx), signature or model.card.signature, sm)


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_model_compiles_and_a_rebuild_is_the_same_but_for_numbering(name, sm):
    libc = ctypes.CDLL(None)
    was = libc.personality(0xFFFFFFFF)  # asks, changes nothing
    if libc.personality(was | NO_RANDOMISATION) == -1:
        pytest.skip("this system does not permit to switch address randomisation off")
    libc.personality(was)
    first, second = build(name, sm), build(name, sm)
    assert len(first) == len(second)
    # most rebuilds are equal; on a busy machine up to 209 bytes of 3 MB differed (decisions.md)
    assert sum(a != b for a, b in zip(first, second, strict=True)) <= len(first) / 5000
    assert len(first) > len(read_model(name, shipped_models()).onnx)


def test_engines_for_different_gpus_differ():
    assert len({build(sm=sm) for sm in GPUS}) == len(GPUS)


def test_a_model_with_a_memory_compiles(streaming):
    model = read_model("streaming", streaming)
    assert build_engine("tensorrt_rtx", model.onnx, model.card.signature, "sm_89")


def test_an_operator_that_it_does_not_know():
    with pytest.raises(ModelError, match=r"^tensorrt_rtx: cannot read the model: .*; restore the model file$"):
        build(change=lambda onnx: onnx.replace(b"DepthToSpace", b"DepthToSpice"))


def test_an_input_of_another_name():
    with pytest.raises(ModelError) as caught:
        build(change=lambda onnx: onnx.replace(b"image_and_noise_level", b"image_and_noise_lemon"))
    assert str(caught.value) == (
        "tensorrt_rtx: the model's inputs are image_and_noise_lemon; the card says image_and_noise_level; correct the "
        "card or restore the model file"
    )


def test_a_gpu_that_it_does_not_build_for():
    with pytest.raises(ModelError, match=r"^tensorrt_rtx: builds for sm_75, .*, not for sm_90; another backend serves"):
        build(sm="sm_90")


@no_gpu
@pytest.mark.parametrize("damage", [bytes, lambda engine: engine[:1000], lambda engine: b""])
def test_an_engine_that_this_machine_cannot_load(damage):
    """Whole, it is for a GPU that is not here; truncated, for none."""
    model = read_model("mr-denoise", shipped_models())
    trt = importlib.import_module("tensorrt_rtx_bindings")
    with pytest.raises(ModelError) as caught:
        tensorrt_backend._Session("tensorrt_rtx", trt, damage(build()), model.card.signature)
    assert str(caught.value) == (
        "tensorrt_rtx: this machine's GPU refuses the engine; see the list of GPUs it supports"
    )


def test_the_cache_keeps_an_engine_for_each_gpu(tmp_path, monkeypatch):
    model = read_model("mr-denoise", shipped_models())
    backend = TensorRT("tensorrt_rtx", tmp_path / "engines")
    built = {sm: backend.build(model.onnx, model.card.signature, sm) for sm in GPUS}
    assert len({path for path, _ in built.values()}) == len(GPUS)

    def again(*_):
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(tensorrt_backend, "build_engine", again)
    assert {sm: backend.build(model.onnx, model.card.signature, sm) for sm in GPUS} == built


@no_gpu
def test_an_engine_that_was_built_ahead_is_found_on_its_gpu(tmp_path, monkeypatch):
    """The driver's version does not matter: TensorRT-RTX compiles for it when it loads the engine."""
    model = read_model("mr-denoise", shipped_models())
    backend = TensorRT("tensorrt_rtx", tmp_path / "engines")
    _, engine = backend.build(model.onnx, model.card.signature, "sm_89")
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: Gpu("L4", "8.9", 13020))
    loaded = []
    monkeypatch.setattr(tensorrt_backend, "_Session", lambda name, trt, found, signature: loaded.append(found))
    backend.load(model.onnx, model.card.signature, "f32")
    assert loaded == [engine]


def test_tf32_is_off_and_the_network_is_strongly_typed(monkeypatch):
    """Or "f32" would not be f32. Asked of the real builder."""
    trt = importlib.import_module("tensorrt_rtx_bindings")
    model = read_model("mr-denoise", shipped_models())
    seen = {}

    class Builder:
        def __init__(self, logger):
            self._real = real(logger)

        def __getattr__(self, name):
            return getattr(self._real, name)

        def create_network(self, flags):
            seen["flags"] = flags
            return self._real.create_network(flags)

        def build_serialized_network(self, network, config):
            seen["tf32"] = config.get_flag(trt.BuilderFlag.TF32)
            return self._real.build_serialized_network(network, config)

    real = trt.Builder
    monkeypatch.setattr(trt, "Builder", Builder)
    assert compile_here("tensorrt_rtx", model.onnx, model.card.signature, "sm_86")
    assert seen == {"flags": 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), "tf32": False}


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    build()
    with pytest.raises(ModelError):
        build(sm="sm_90")
    assert list(Path(tmp_path).iterdir()) == []


def test_a_real_time_process_builds_at_an_ordinary_priority(tmp_path):
    """A builder that inherited it would keep the receiver from its core for as long as it takes."""
    code = (
        "import os, sys; from appliance.inference import build_engine as b\n"
        "try: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\n"
        "except PermissionError: sys.exit('not permitted')\n"
        "start = b._START.replace('os.execv', 'print(os.sched_getscheduler(0), os.nice(0)); os._exit(0); os.execv')\n"
        "os.execv(sys.executable, [sys.executable, '-c', start])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "not permitted" in child.stderr:
        pytest.skip("this user may not be real-time")
    scheduler, nice = map(int, child.stdout.split())
    assert scheduler == os.SCHED_OTHER and nice >= 10
