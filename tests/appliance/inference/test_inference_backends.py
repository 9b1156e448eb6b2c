# SPDX-License-Identifier: Apache-2.0
"""Backends: OpenVINO agrees with ONNX Runtime, precision is what was asked for, GPU parts stay out without a GPU."""

import subprocess
import sys

import numpy as np
import pytest

from appliance.errors import ModelError
from appliance.inference import openvino as openvino_backend
from appliance.inference import tensorrt as tensorrt_backend
from appliance.inference.backend import Shapes
from appliance.inference.card import read_model, shipped_models
from appliance.inference.gpu import ask_child, find_gpu
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.openvino import OpenVino
from appliance.inference.parity import check_parity
from appliance.inference.tensorrt import TensorRT

MODEL = read_model("mr-denoise", shipped_models())
GOLDEN = next(case for case in MODEL.golden if case.name == "sigma_05")
no_gpu = pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")


def load(backend, precision="f32"):
    return backend.load(MODEL.onnx, MODEL.card.signature, precision)


def inputs():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :48]
    disc = (np.hypot(y - 32, x - 24) < 20).astype(np.float32)
    images = {
        "noise": rng.random((64, 48)),
        "zeros": np.zeros((64, 48)),
        "ones": np.ones((64, 48)),
        "checkerboard": (y + x) % 2,
        "phantom": disc + 0.1 * rng.normal(size=disc.shape),
        "hundredfold": 100 * disc,
    }
    for name, image in images.items():
        array = np.stack([image, np.full(image.shape, 0.1)])[None].astype(np.float32)
        array.flags.writeable = False
        yield pytest.param(array, id=name)


@pytest.mark.parametrize("array", list(inputs()))
def test_openvino_agrees_with_the_reference(array):
    reference = load(OnnxRuntime()).run(array)[0]
    # float32 sums of about 150 products in another order: 1e-5 of the largest input is 100 times their rounding
    np.testing.assert_allclose(load(OpenVino()).run(array)[0], reference, rtol=0, atol=1e-5 * max(1, array.max()))
    assert reference.shape == (1, 1, *array.shape[2:]) and reference.dtype == np.float32


def test_the_reference_repeats_bit_by_bit():
    session = load(OnnxRuntime())
    assert np.array_equal(session.run(GOLDEN.inputs[0])[0], session.run(GOLDEN.inputs[0])[0])


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_an_output_is_not_overwritten_by_the_next(backend):
    session = load(backend)
    first = session.run(GOLDEN.inputs[0])[0]
    kept = first.copy()
    session.run(np.zeros_like(GOLDEN.inputs[0]))
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino(threads=2)], ids=lambda b: b.name)
def test_the_golden_output_is_reproduced(backend):
    parity = check_parity(load(backend), MODEL, "f32")
    assert parity.max_error <= parity.tolerance == MODEL.card.golden.tolerance["f32"]


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_bytes_that_are_no_model(backend):
    with pytest.raises(ModelError, match=f"{backend.name}: cannot load the model: .*; restore the model file"):
        backend.load(b"no model", MODEL.card.signature, "f32")


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        (b"DepthToSpace", b"DepthToSpice", "cannot load the model: .*DepthToSpice.*; restore the model file"),
        (
            b"image_and_noise_level",
            b"image_and_noise_lemon",
            "the model's inputs are image_and_noise_lemon; the card says image_and_noise_level; correct the card or "
            "restore the model file",
        ),
        (
            b"\n\x05noise\x12",
            b"\n\x05nosie\x12",
            "the model's outputs are nosie; the card says noise; correct the card or restore the model file|"
            "cannot load the model: .*; restore the model file",  # no node gives it
        ),
    ],
    ids=["unsupported operator", "input name", "output name"],
)
def test_a_model_file_that_is_not_what_the_card_says(backend, was, now, words):
    assert was in MODEL.onnx
    with pytest.raises(ModelError, match=f"^{backend.name}: ({words})$"):
        backend.load(MODEL.onnx.replace(was, now), MODEL.card.signature, "f32")


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_a_card_that_says_another_number_of_channels(backend):
    three = Shapes(*((1, 3, *shape[2:]) for shape in MODEL.card.signature.inputs["image_and_noise_level"]))
    signature = MODEL.card.signature._replace(inputs={"image_and_noise_level": three})
    with pytest.raises(ModelError) as caught:
        backend.load(MODEL.onnx, signature, "f32")
    assert str(caught.value) == (
        f"{backend.name}: input image_and_noise_level has 2 channels, the card says 3; correct the card or restore the "
        "model file"
    )


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_half_a_model_file(backend):
    with pytest.raises(ModelError, match=f"{backend.name}: cannot load the model: .*; restore the model file"):
        backend.load(MODEL.onnx[: len(MODEL.onnx) // 2], MODEL.card.signature, "f32")


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_several_inputs_and_outputs_come_in_the_order_of_the_graph(backend, streaming):
    model = read_model("streaming", streaming)
    session = backend.load(model.onnx, model.card.signature, "f32")
    for case in model.golden:
        image, memory = case.inputs
        noise, memory_out = session.run(image, memory)
        pooled = image.reshape(1, 1, 16, 2, 24, 2).mean((3, 5))
        np.testing.assert_allclose(noise, image + memory.mean(), atol=1e-6)
        np.testing.assert_allclose(memory_out, memory + pooled, atol=1e-6)


@pytest.mark.parametrize("backend", [OnnxRuntime(), OpenVino()], ids=lambda b: b.name)
def test_a_wrong_number_of_channels(backend):
    with pytest.raises(ModelError, match=r"run failed for shape \(1, 3, 16, 16\): .*; see the card's limits"):
        load(backend).run(np.zeros((1, 3, 16, 16), np.float32))


def test_openvino_computes_in_the_precision_it_was_asked_for_or_refuses():
    """bf16 has 8 bits of mantissa: its answer differs, where that of f32 does not. Some CPUs have no bf16."""
    f32 = np.abs(load(OpenVino(), "f32").run(GOLDEN.inputs[0])[0] - GOLDEN.outputs[0]).max()
    assert f32 < 1e-5
    try:
        bf16 = np.abs(load(OpenVino(), "bf16").run(GOLDEN.inputs[0])[0] - GOLDEN.outputs[0]).max()
    except ModelError as e:
        assert str(e).startswith("openvino: asked for bf16, compiled for ")
    else:
        assert 1e-4 < bf16 <= MODEL.card.golden.tolerance["bf16"]


def test_bf16_is_offered_only_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(openvino_backend, "has_native_bf16", lambda: False)
    assert OpenVino().available("bf16") == "bf16 needs a CPU with AMX or AVX-512 BF16"
    assert OpenVino().available("f32") is None
    monkeypatch.setattr(openvino_backend, "has_native_bf16", lambda: True)
    assert OpenVino().available("bf16") is None


def test_onnxruntime_takes_f32_only():
    assert OnnxRuntime().available("bf16") == "onnxruntime runs f32 only, not bf16"
    assert OnnxRuntime().available("f32") is None


def test_what_is_not_this_precision_is_said(tmp_path):
    expected = "tensorrt_rtx takes its precision from the model file, which is f32"
    assert TensorRT("tensorrt_rtx", tmp_path).available("bf16") == expected


@no_gpu
def test_gpu_backends_say_why_not_and_import_nothing(tmp_path):
    for backend in (TensorRT("tensorrt", tmp_path), TensorRT("tensorrt_rtx", tmp_path), OnnxRuntime("cuda")):
        assert backend.available("f32").startswith("no usable GPU: "), backend.name
    assert not {"tensorrt", "tensorrt_rtx", "cupy", "pycuda"} & set(sys.modules)


def test_a_gpu_library_that_kills_its_process_is_a_reason_only(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_backend, "find_gpu", lambda: ("H200", "9.0", 13000))
    monkeypatch.setattr(tensorrt_backend, "_probe", lambda module: ask_child("import os; os.kill(os.getpid(), 11)"))
    assert TensorRT("tensorrt", tmp_path).available("f32") == "tensorrt: ended with -11"


def test_no_telemetry_and_no_network_code_is_loaded():
    code = (
        "import sys; from appliance.inference.openvino import OpenVino; OpenVino().fingerprint();"
        "print([m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


@pytest.mark.gpu
@pytest.mark.skipif(isinstance(find_gpu(), str), reason=str(find_gpu()))
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_reproduces_the_golden_output(module, tmp_path):
    backend = TensorRT(module, tmp_path)
    if reason := backend.available("f32"):
        pytest.skip(reason)
    assert check_parity(load(backend), MODEL, "f32").max_error <= MODEL.card.golden.tolerance["f32"]
