# SPDX-License-Identifier: Apache-2.0
"""From a name to a model that runs: opened once, proved, renewed when its files change, refused when they are wrong."""

import hashlib
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from appliance.context import Context
from appliance.errors import ModelError
from appliance.inference import open_model as opening
from appliance.inference.card import read_model, shipped_models
from appliance.inference.golden import write_golden
from appliance.inference.installed import activate, place, rollback
from appliance.inference.ladder import Ladder, Rung
from appliance.inference.open_model import LiveModel, candidates, open_model

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(opening, "WATCH_S", 0.02)


@pytest.fixture
def alarms():
    return {}


@pytest.fixture
def context(tmp_path, alarms):
    """A site with a copy of the shipped models of its own."""
    shutil.copytree(shipped_models(), tmp_path / "models-here")
    edit(tmp_path / "models-here", lambda card: card["input"].update(typical_px=32))  # the time trial is a small one
    edit(tmp_path / "models-here", lambda card: card.update(version="1"))
    return Context(
        pipeline="mri-live",
        data_dir=tmp_path,
        run_dir=tmp_path,
        models_dir=tmp_path / "models-here",
        alarm=alarms.__setitem__,
    )


def new_version(context, version) -> Path:
    """The shipped model under another version, as a folder to install."""
    folder = context.data_dir / f"made-{version}"
    shutil.copytree(context.models_dir, folder)
    edit(folder, lambda card: card.update(version=version))
    return folder


def edit(folder, change):
    path = folder / "mr-denoise.yaml"
    card = yaml.safe_load(path.read_text())
    change(card)
    path.write_text(yaml.safe_dump(card))


def spoil_golden(folder):
    """Have another model's answers in the golden file, and its digest in the card."""
    golden = folder / "mr-denoise.golden.npz"
    with np.load(golden) as arrays:
        np.savez(golden, **{key: arrays[key] + np.float32(0.01 * ("output" in key)) for key in arrays})
    digest = hashlib.sha256(golden.read_bytes()).hexdigest()
    edit(folder, lambda card: card["golden"].update(sha256=digest))


def install(context, version, folder):
    activate(place(context.models_dir, context.data_dir), "mr-denoise", version, folder, lambda model: None)


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def version_of_the_next_scan(context):
    return open_model("mr-denoise", context, "f32").status()["version"]


def test_the_shipped_model_opens_on_this_machine(context, image, alarms):
    live = open_model("mr-denoise", context, "f32")
    status = live.status()
    assert (status["model"], status["model_state"], status["backend"], status["precision"], status["degraded"]) == (
        "mr-denoise", "running", "openvino", "f32", "",
    )  # fmt: skip
    assert status["parity_max_error"] <= status["parity_tolerance"]
    assert live.run(image)[0].shape == (1, 1, 64, 48)
    assert live.provenance[:2] == ("mr-denoise", live.card.sha256) and len(live.provenance[2]) == 64
    assert alarms == {"model mr-denoise": ""}
    assert not (context.data_dir / "engines").exists()  # no engine is built for a CPU


def test_a_model_is_proved_once(context, backend, monkeypatch):
    one = backend("one")
    monkeypatch.setattr(opening, "candidates", lambda *_: [(one, "f32")])
    assert open_model("mr-denoise", context)._ladder is open_model("mr-denoise", context)._ladder
    assert one.n_loads == 1


def test_while_an_engine_is_built_images_pass_through_and_say_so(context, backend, image, alarms, monkeypatch):
    slow = backend("slow")
    slow.gate.clear()
    monkeypatch.setattr(opening, "candidates", lambda *_: [(slow, "f32")])
    monkeypatch.setattr(opening, "FIRST_WAIT_S", 0.0)
    live = open_model("mr-denoise", context)
    live.warm_up(64, 48)  # nothing to warm yet, and no reason to refuse the scan
    preparing = "preparing: its engine is built or proved; images pass through until then"
    for _ in range(3):
        with pytest.raises(ModelError) as caught:
            live.run(image)
        assert str(caught.value) == f"mr-denoise: {preparing}"
    assert alarms == {"model mr-denoise": f"{preparing}; images pass through unprocessed"}
    slow.gate.set()
    until(lambda: live.status()["model_state"] == "running")
    live.run(image)
    until(lambda: alarms == {"model mr-denoise": ""})


def test_an_engine_that_fails_when_it_is_warmed_up_costs_no_scan(context, backend, image, monkeypatch):
    first, second = backend("first"), backend("second")
    monkeypatch.setattr(opening, "candidates", lambda *_: [(first, "f32"), (second, "f32")])
    live = open_model("mr-denoise", context)
    with pytest.raises(ModelError, match="16 to 1024 pixels a side"):
        live.warm_up(8, 8)
    first.run_fails = RuntimeError("gone")
    live.warm_up(64, 48)
    until(lambda: live.status()["backend"] == "second")
    assert live.run(image)[0].shape == (1, 1, 64, 48)


@pytest.mark.parametrize(
    "arrays",
    [
        [np.zeros((1, 3, 64, 64), np.float32)],
        [np.zeros((2, 2, 64, 64), np.float32)],
        [np.zeros((2, 64, 64), np.float32)],
        [np.zeros((1, 2, 63, 64), np.float32)],
        [np.zeros((1, 2, 8, 64), np.float32)],
        [np.zeros((1, 2, 64, 2048), np.float32)],
        [np.zeros((1, 2, 64, 64))],
        [np.zeros((1, 2, 64, 64), np.float32)] * 2,
    ],
    ids=lambda arrays: f"{len(arrays)}x{arrays[0].shape}{arrays[0].dtype}",
)
def test_arrays_that_the_card_does_not_allow_cost_no_engine(context, arrays):
    live = open_model("mr-denoise", context, "f32")
    with pytest.raises(ModelError) as caught:
        live.run(*arrays)
    assert str(caught.value).startswith(
        "mr-denoise: takes (1, 2, y, x) float32, 16 to 1024 pixels a side in multiples of "
        f"{live.card.input.multiple_px}; got "
        f"{', '.join(str(a.shape) for a in arrays)} {arrays[0].dtype}; correct the stage"
    )
    assert live.status()["backend"] == "openvino"


def test_a_golden_output_of_another_model_is_a_model_error(context):
    """Files that agree with their card, but a model that does something else than it did at training."""
    spoil_golden(context.models_dir)
    with pytest.raises(ModelError, match=r"openvino f32: golden case .* missed by 0\.01.*onnxruntime f32: golden case"):
        open_model("mr-denoise", context, "f32")


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


def test_a_file_that_is_corrupted_while_the_model_runs_is_not_used(context, image, alarms):
    """What was proved is in memory: this scan and those to come go on with it, and people are told at once."""
    live = open_model("mr-denoise", context, "f32")
    (before,) = live.run(image)
    onnx = context.models_dir / "mr-denoise.onnx"
    good = onnx.read_bytes()
    onnx.write_bytes(good[:20_000] + b"\x00" + good[20_001:])
    until(lambda: "sha256 of mr-denoise.onnx is " in alarms["model mr-denoise"])
    assert alarms["model mr-denoise"].startswith(str(context.models_dir / "mr-denoise.yaml"))
    assert alarms["model mr-denoise"].endswith("; what was loaded before stays in use")
    assert np.array_equal(open_model("mr-denoise", context, "f32").run(image)[0], before)
    onnx.write_bytes(good)
    until(lambda: alarms["model mr-denoise"] == "")


def test_a_model_that_was_missing_is_taken_up_when_it_comes(context, alarms):
    shutil.move(context.models_dir, context.data_dir / "elsewhere")
    with pytest.raises(ModelError, match=r"mr-denoise\.yaml: no such model card; models in this folder: none"):
        open_model("mr-denoise", context, "f32")
    assert alarms["model mr-denoise"].endswith("folder: none; images pass through unprocessed")
    shutil.move(context.data_dir / "elsewhere", context.models_dir)
    until(lambda: alarms["model mr-denoise"] == "")
    assert version_of_the_next_scan(context) == "1"


def test_an_activated_version_is_taken_up_by_the_next_scan(context, image, alarms):
    running = open_model("mr-denoise", context, "f32")
    install(context, "2", new_version(context, "2"))
    until(lambda: version_of_the_next_scan(context) == "2")
    running.run(image)
    assert running.status()["version"] == "1"  # the scan that runs stays with what it began with
    rollback(place(context.models_dir, context.data_dir), "mr-denoise", lambda model: None)
    until(lambda: version_of_the_next_scan(context) == "1")
    assert alarms == {"model mr-denoise": ""}


def test_an_activated_version_that_fails_here_is_not_taken_up(context, image, alarms):
    open_model("mr-denoise", context, "f32")
    folder = new_version(context, "2")
    spoil_golden(folder)
    install(context, "2", folder)
    until(lambda: "golden case" in alarms["model mr-denoise"])
    assert alarms["model mr-denoise"].endswith("what was loaded before stays in use")
    assert version_of_the_next_scan(context) == "1"


def other_model(context, version):
    """Another network with the same inputs: the last weight differs, and the golden file with it."""
    folder = new_version(context, version)
    onnx = (folder / "mr-denoise.onnx").read_bytes()
    at = len(onnx) // 2  # nearly all of the file is weights
    onnx = onnx[:at] + bytes([onnx[at] ^ 1]) + onnx[at + 1 :]
    (folder / "mr-denoise.onnx").write_bytes(onnx)
    model = read_model("mr-denoise", shipped_models())
    cases = {case.name: case.inputs for case in model.golden}
    digest = write_golden(folder / "mr-denoise.golden.npz", onnx, model.card.signature, cases)
    edit(folder, lambda card: card.update(sha256=hashlib.sha256(onnx).hexdigest()))
    edit(folder, lambda card: card["golden"].update(sha256=digest))
    return folder


def test_after_the_last_backend_comes_the_version_before(context, backend, image, alarms, monkeypatch):
    class Fails(backend):
        """Fails with the model of version 2 only."""

        def load(self, model, signature, precision):
            self.is_new = hashlib.sha256(model).hexdigest() != read_model("mr-denoise", shipped_models()).card.sha256
            return super().load(model, signature, precision)

        def run(self, *arrays):
            if self.is_new and broken.is_set():
                raise RuntimeError("no more")
            return super().run(*arrays)

    broken = threading.Event()
    monkeypatch.setattr(opening, "candidates", lambda *_: [(Fails("a"), "f32"), (Fails("b"), "f32")])
    install(context, "2", other_model(context, "2"))
    live = open_model("mr-denoise", context)
    live.run(image)
    digest_of_2 = live.provenance[1]
    broken.set()
    with pytest.raises(ModelError, match="failed: no more"):
        live.run(image)
    until(lambda: live.status()["model_state"] == "running")
    live.run(image)
    assert live.provenance[1] == read_model("mr-denoise", shipped_models()).card.sha256 != digest_of_2
    assert live.status()["version"] == "1"
    until(lambda: alarms["model mr-denoise"] == "runs degraded on version 1 on a f32: a f32: no more; b f32: no more")


def test_a_version_that_is_damaged_on_disk_is_stepped_over_at_the_start(context, alarms):
    install(context, "2", new_version(context, "2"))
    (context.data_dir / "models" / "mr-denoise" / "2" / "mr-denoise.onnx").write_bytes(b"")
    live = open_model("mr-denoise", context, "f32")
    assert live.status()["version"] == "1"
    assert "/models/mr-denoise/2/mr-denoise.yaml: sha256 of mr-denoise.onnx is " in alarms["model mr-denoise"]
    assert alarms["model mr-denoise"].startswith("runs degraded on openvino f32: ")


def test_a_model_without_a_backend_left_is_tried_again_for_the_next_scan(context, backend, image, alarms, monkeypatch):
    """Not the backend that computed wrongly: that one stays out."""
    wrong, broken = backend("wrong"), backend("broken")
    monkeypatch.setattr(opening, "candidates", lambda *_: [(wrong, "f32"), (broken, "f32")])
    monkeypatch.setattr(opening, "RETRY_S", 0.1)
    live = open_model("mr-denoise", context)
    wrong.error, broken.load_fails = np.nan, MemoryError("no memory")
    with pytest.raises(ModelError, match="wrong f32 gave values that are not finite"):
        live.run(image)
    until(lambda: live.status()["model_state"] == "pass-through")
    until(lambda: broken.n_loads > 3)
    with pytest.raises(ModelError, match=r"no backend reproduces its golden output here .*no memory"):
        open_model("mr-denoise", context)
    wrong.error, broken.load_fails = 0.0, None
    reason = "wrong f32: gave values that are not finite"
    until(lambda: alarms["model mr-denoise"] == f"runs degraded on broken f32: {reason}")
    assert open_model("mr-denoise", context).status()["backend"] == "broken" and wrong.n_loads == 1
    with pytest.raises(ModelError, match="no backend"):  # the scan that ran stays with what it had
        live.run(image)


def test_a_streaming_model_is_given_its_memory_back(streaming, tmp_path):
    """Twice the same image: what comes out the second time is what the first left behind, by numpy's account."""
    live = open_model("streaming", Context("x", tmp_path, tmp_path, models_dir=streaming), "f32")
    image = np.arange(32 * 48, dtype=np.float32).reshape(1, 1, 32, 48) / 1536
    memory = np.zeros(live.card.memory.shape(32, 48), np.float32)
    assert memory.shape == (1, 1, 16, 24)
    noise, memory = live.run(image, memory)
    pooled = image.reshape(1, 1, 16, 2, 24, 2).mean((3, 5))
    np.testing.assert_allclose(noise, image, atol=1e-6)
    np.testing.assert_allclose(memory, pooled, atol=1e-6)
    noise, memory = live.run(image, memory)
    np.testing.assert_allclose(noise, image + pooled.mean(), atol=1e-6)
    np.testing.assert_allclose(memory, 2 * pooled, atol=1e-6)
    with pytest.raises(ModelError, match=r"multiples of 2, and its memory; got \(1, 1, 32, 48\), \(1, 1, 32, 48\) flo"):
        live.run(image, image)


def test_another_version_does_not_get_the_memory_of_the_one_before(streaming, backend):
    """Each version has its own idea of what it remembers."""
    model = read_model("streaming", streaming)
    before = model._replace(card=model.card.model_copy(update={"version": "0"}))
    first = backend("first")
    ladder = Ladder([Rung(model, first, "f32"), Rung(before, backend("second"), "f32")], lambda rung: True)
    ladder.start()
    assert ladder.settled.wait(WAIT_S)
    live = LiveModel(ladder)
    image = np.ones((1, 1, 32, 48), np.float32)
    _, memory = live.run(image, np.ones((1, 1, 16, 24), np.float32))
    first.run_fails = RuntimeError("gone")
    with pytest.raises(ModelError):
        live.run(image, memory)
    until(lambda: live.status()["version"] == "0")
    noise, memory = live.run(image, memory)
    assert np.array_equal(noise, image)  # as if it had seen nothing
    noise, _ = live.run(image, memory)
    assert np.array_equal(noise, 2 * image)  # from here on its own
