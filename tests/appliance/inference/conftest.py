# SPDX-License-Identifier: Apache-2.0
"""The shipped denoiser, and a backend whose faults are chosen: it computes on the reference otherwise."""

import hashlib
import threading

import numpy as np
import pytest
import yaml

from appliance.inference.backend import Shapes, Signature
from appliance.inference.card import read_model, shipped_models
from appliance.inference.golden import plain_inputs, write_golden
from appliance.inference.onnxruntime import OnnxRuntime

SHIPPED = read_model("mr-denoise", shipped_models())


class Backend:
    """`error` is added to every output; `run_fails` and `load_fails` are raised; `gate` holds up loading."""

    def __init__(self, name, error=0.0, absent=None, load_fails=None, on_gpu=False):
        self.name, self.error, self.absent, self.load_fails = name, error, absent, load_fails
        self.on_gpu = on_gpu
        self.run_fails = None
        self.takes, self.engine_digest = "host", f"digest of {name}"
        self.gate = threading.Event()
        self.gate.set()
        self.n_loads = self.n_runs = 0

    def available(self, precision):
        return self.absent

    def fingerprint(self):
        return self.name

    def load(self, model, signature, precision):
        assert self.gate.wait(30)
        self.n_loads += 1
        if self.load_fails:
            raise self.load_fails
        self._session = OnnxRuntime().load(model, signature, "f32")
        return self

    def run(self, *arrays):
        self.n_runs += 1
        if self.run_fails:
            raise self.run_fails
        return tuple(output + np.float32(self.error) for output in self._session.run(*arrays))


@pytest.fixture
def backend():
    """The class of the backend above."""
    return Backend


@pytest.fixture
def model():
    """The shipped denoiser, its time trial at 32 x 32 pixels."""
    small = SHIPPED.card.input.model_copy(update={"typical_px": 32})
    return SHIPPED._replace(card=SHIPPED.card.model_copy(update={"input": small}))


@pytest.fixture
def image():
    """What a denoiser takes: an image and its noise level."""
    rng = np.random.default_rng(4)
    return np.stack([rng.random((64, 48)), np.full((64, 48), 0.05)])[None].astype(np.float32)


def _field(number, value):
    """One field of a protocol buffer: a number, a text or bytes (a message)."""
    if isinstance(value, int):
        return bytes([*_varint(number << 3), *_varint(value)])
    content = value.encode() if isinstance(value, str) else value
    return bytes([*_varint(number << 3 | 2), *_varint(len(content))]) + content


def _varint(n):
    while n > 127:
        yield n & 127 | 128
        n >>= 7
    yield n


def _node(op, inputs, output, **attributes):
    fields = [_field(1, name) for name in inputs] + [_field(2, output), _field(4, op)]
    for name, values in attributes.items():
        content = _field(1, name) + b"".join(_field(8, value) for value in values) + _field(20, 7)  # 7: INTS
        fields.append(_field(5, content))
    return _field(1, b"".join(fields))


def _tensor(number, name, *shape):
    dims = b"".join(_field(1, _field(1 if isinstance(n, int) else 2, n)) for n in shape)
    return _field(number, _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims))))


def streaming_onnx():
    """noise = image + the mean of memory; memory = memory + image at half resolution."""
    graph = (
        _node("AveragePool", ["image"], "half", kernel_shape=[2, 2], strides=[2, 2])
        + _node("Add", ["memory", "half"], "memory_out")
        + _node("GlobalAveragePool", ["memory"], "mean")
        + _node("Add", ["image", "mean"], "noise")
        + _field(2, "streaming")
        + _tensor(11, "image", 1, 1, "y", "x")
        + _tensor(11, "memory", 1, 1, "y2", "x2")
        + _tensor(12, "noise", 1, 1, "y", "x")
        + _tensor(12, "memory_out", 1, 1, "y2", "x2")
    )
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 17))


@pytest.fixture(scope="session")
def streaming(tmp_path_factory):
    """A folder with a model that has a memory, and its card."""
    folder = tmp_path_factory.mktemp("streaming")
    onnx = streaming_onnx()
    (folder / "streaming.onnx").write_bytes(onnx)
    card = yaml.safe_load((shipped_models() / "mr-denoise.yaml").read_text())
    sides = {"smallest_px": 16, "typical_px": 32, "largest_px": 64, "multiple_px": 2}
    memory = {"name": "memory", "output": "memory_out", "channels": 1, "every_px": 2}
    signature = Signature(
        {
            "image": Shapes((1, 1, 16, 16), (1, 1, 32, 32), (1, 1, 64, 64)),
            "memory": Shapes((1, 1, 8, 8), (1, 1, 16, 16), (1, 1, 32, 32)),
        },
        ("noise", "memory_out"),
    )
    digest = write_golden(
        folder / "streaming.golden.npz", onnx, signature, plain_inputs([(1, 1, 32, 48), (1, 1, 16, 24)])
    )
    card |= {
        "name": "streaming",
        "file": "streaming.onnx",
        "sha256": hashlib.sha256(onnx).hexdigest(),
        "input": {"name": "image", "channels": ["image"], "scaling": "none", **sides},
        "output": {"name": "noise", "meaning": "for tests"},
        "memory": memory,
        "golden": {"file": "streaming.golden.npz", "sha256": digest, "tolerance": {"f32": 1e-5, "bf16": 0.02}},
    }
    (folder / "streaming.yaml").write_text(yaml.safe_dump(card))
    assert read_model("streaming", folder).card.signature == signature
    return folder
