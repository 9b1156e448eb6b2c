# SPDX-License-Identifier: Apache-2.0
"""The gate: no engine goes live unless it reproduces the golden output; the next one is tried, and it is said."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from appliance.context import Context
from appliance.errors import ModelError
from appliance.inference.card import read_model, shipped_models
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.open_model import candidates, first_that_passes, open_model

MODEL = read_model("mr-denoise", shipped_models())


class Fake:
    """A backend whose answers are off by `error`, or that is not there."""

    on_gpu = False

    def __init__(self, name: str, error: float = 0.0, absent: str | None = None):
        self.name, self.error, self.absent = name, error, absent
        self.takes, self.engine_digest = "host", f"digest of {name}"

    def available(self, precision):
        return self.absent

    def fingerprint(self):
        return self.name

    def load(self, model, signature, precision):
        self._session = OnnxRuntime().load(model, signature, "f32")
        return self

    def run(self, *arrays):
        return tuple(output + np.float32(self.error) for output in self._session.run(*arrays))


def context(data_dir, **changes):
    return Context(pipeline="mri-live", data_dir=data_dir, run_dir=data_dir, **changes)


def always(backend, precision):
    return True


def never(backend, precision):
    return False


def test_the_shipped_model_opens_on_this_machine(tmp_path):
    live = open_model("mr-denoise", context(tmp_path), "f32")
    status = live.status()
    assert (status["model"], status["backend"], status["precision"], status["degraded"]) == (
        "mr-denoise", "openvino", "f32", "",
    )  # fmt: skip
    assert status["parity_max_error"] <= status["parity_tolerance"]
    assert live.provenance[:2] == ("mr-denoise", MODEL.card.sha256) and len(live.provenance[2]) == 64
    assert list(tmp_path.iterdir()) == []  # no engine is built for a CPU


def test_a_model_is_opened_once(tmp_path):
    assert open_model("mr-denoise", context(tmp_path)) is open_model("mr-denoise", context(tmp_path))


def test_a_backend_that_misses_the_golden_output_is_stepped_over():
    live = first_that_passes(MODEL, [(Fake("fast", 1e-3), "f32"), (OnnxRuntime(), "f32")], always)
    assert live.backend == "onnxruntime"
    assert live.degraded == ("fast f32: golden case 'checkerboard' missed by 0.001, tolerance 2e-05",)
    assert live.status()["degraded"] == live.degraded[0]


@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_does_not_pass(error):
    live = first_that_passes(MODEL, [(Fake("broken", error), "f32"), (Fake("good"), "f32")], always)
    assert live.backend == "good" and len(live.degraded) == 1


def test_a_precision_without_a_tolerance_does_not_pass():
    live = first_that_passes(MODEL, [(Fake("half"), "f16"), (Fake("good"), "f32")], always)
    assert live.degraded == ("half f16: the card gives no tolerance for f16",)


def test_an_absent_backend_degrades_only_what_was_asked_for():
    order = [(Fake("gpu", absent="no usable GPU"), "f32"), (Fake("cpu"), "f32")]
    assert first_that_passes(MODEL, order, always).degraded == ()
    assert first_that_passes(MODEL, order, never).degraded == ("gpu f32: no usable GPU",)


def test_when_nothing_passes_every_reason_is_given():
    with pytest.raises(ModelError) as caught:
        first_that_passes(MODEL, [(Fake("a", absent="not here"), "f32"), (Fake("b", 0.5), "f32")], always)
    assert str(caught.value) == (
        "mr-denoise: no backend reproduces its golden output here (a f32: not here; "
        "b f32: golden case 'checkerboard' missed by 0.5, tolerance 2e-05); restore the model"
    )


def test_a_golden_output_of_another_model_is_a_model_error(tmp_path):
    """Files that agree with their card, but a model that does something else than it did at training."""
    folder = tmp_path / "models"
    shutil.copytree(shipped_models(), folder)
    golden = folder / "mr-denoise.golden.npz"
    with np.load(golden) as arrays:
        np.savez(golden, **{key: arrays[key] + np.float32(0.01 * ("output" in key)) for key in arrays})
    card = yaml.safe_load((folder / "mr-denoise.yaml").read_text())
    card["golden"]["sha256"] = hashlib.sha256(golden.read_bytes()).hexdigest()
    (folder / "mr-denoise.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(ModelError, match=r"openvino f32: golden case .* missed by 0\.01.*onnxruntime f32: golden"):
        open_model("mr-denoise", context(tmp_path, models_dir=folder), "f32")


def test_the_order_of_backends():
    names = [(b.name, p) for b, p in candidates("gpu", "auto", 1, Path("engines"))]
    assert names == [
        ("tensorrt", "f32"),
        ("tensorrt_rtx", "f32"),
        ("onnxruntime-cuda", "f32"),
        ("openvino", "bf16"),
        ("openvino", "f32"),
        ("onnxruntime", "f32"),
    ]
    assert [(b.name, p) for b, p in candidates("cpu", "f32", 1, Path("engines"))] == names[-2:]
