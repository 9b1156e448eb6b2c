# SPDX-License-Identifier: Apache-2.0
"""Cards: each thing that can be wrong with a model's files has its own text."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from appliance.errors import ModelError
from appliance.inference.card import Validation, read_model, shipped_models


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(shipped_models(), tmp_path / "models")
    return tmp_path / "models"


def edit(folder: Path, change) -> Path:
    path = folder / "mr-denoise.yaml"
    card = yaml.safe_load(path.read_text())
    change(card)
    path.write_text(yaml.safe_dump(card))
    return path


def refusal(folder: Path, name: str = "mr-denoise") -> str:
    with pytest.raises(ModelError) as caught:
        read_model(name, folder)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(shipped_models().glob("*.yaml")), ids=lambda p: p.stem)
def test_each_shipped_model_has_what_its_card_says(path):
    model = read_model(path.stem, path.parent)
    assert model.card.name == path.stem
    assert hashlib.sha256(model.onnx).hexdigest() == model.card.sha256
    assert {"noise", "zeros", "ones", "checkerboard"} < {case.name.split("-")[0] for case in model.golden}
    for case in model.golden:
        assert len(case.inputs) == len(model.card.signature.inputs)
        assert case.inputs[0].shape[1] == len(model.card.input.channels)
    largest = max(np.abs(case.outputs[0]).max() for case in model.golden)
    assert largest > 100 * max(model.card.golden.tolerance["f32"], 1e-5)  # it can fail


@pytest.mark.parametrize("path", sorted(shipped_models().glob("*.yaml")), ids=lambda p: p.stem)
def test_no_shipped_model_was_worse_than_its_input_where_it_was_tried(path):
    rows = read_model(path.stem, path.parent).card.validated_on
    assert rows and all(row.model_db > row.noisy_db for row in rows if isinstance(row, Validation))


def test_a_missing_card_names_the_models_that_are_there(folder):
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    assert refusal(folder, "pet-denoise") == (
        f"{folder}/pet-denoise.yaml: no such model card; models in this folder: {known}"
    )


def test_a_missing_folder(tmp_path):
    path = tmp_path / "no" / "mr-denoise.yaml"
    assert refusal(tmp_path / "no") == f"{path}: no such model card; models in this folder: none"


def test_an_altered_model_is_named_with_both_digests(folder):
    onnx = folder / "mr-denoise.onnx"
    expected = hashlib.sha256(onnx.read_bytes()).hexdigest()
    onnx.write_bytes(onnx.read_bytes()[:-1] + b"\x00\x00")
    found = hashlib.sha256(onnx.read_bytes()).hexdigest()
    assert refusal(folder) == (
        f"{folder}/mr-denoise.yaml: sha256 of mr-denoise.onnx is {found}, card says {expected}; "
        "restore the file or rebuild"
    )


def test_an_altered_golden_file_is_noticed(folder):
    (folder / "mr-denoise.golden.npz").write_bytes(b"other")
    assert f"{folder}/mr-denoise.yaml: sha256 of mr-denoise.golden.npz is " in refusal(folder)


def test_a_missing_model_file(folder):
    (folder / "mr-denoise.onnx").unlink()
    assert refusal(folder) == (
        f"{folder}/mr-denoise.yaml: cannot read mr-denoise.onnx: No such file or directory; restore the file"
    )


def test_a_golden_file_without_arrays(folder):
    content = b"no zip"
    (folder / "mr-denoise.golden.npz").write_bytes(content)
    path = edit(folder, lambda card: card["golden"].update(sha256=hashlib.sha256(content).hexdigest()))
    assert refusal(folder) == f"{path}: mr-denoise.golden.npz: not an archive of golden cases; restore the file"


def test_all_problems_of_a_card_at_once(folder):
    def change(card):
        card["golden"]["tolerance"]["f32"] = -1
        card["colour"] = "blue"
        del card["limits"]

    path = edit(folder, change)
    assert refusal(folder) == (
        f"{path}: limits: field required; golden.tolerance.f32: input should be greater than 0; "
        "colour: extra inputs are not permitted; correct the card"
    )


def test_a_card_that_points_outside_its_folder(folder):
    edit(folder, lambda card: card.update(file="../../etc/passwd"))
    assert "file: string should match pattern" in refusal(folder)


def test_a_card_under_another_name(folder):
    """Alarms and results would name the wrong model."""
    shutil.copy(folder / "mr-denoise.yaml", folder / "pet-denoise.yaml")
    assert refusal(folder, "pet-denoise") == (
        f"{folder}/pet-denoise.yaml: is the card of 'mr-denoise'; give the file that name"
    )


def test_a_card_that_is_not_yaml(folder):
    (folder / "mr-denoise.yaml").write_text("name: [")
    assert refusal(folder).startswith(f"{folder}/mr-denoise.yaml: not YAML: ")
