# SPDX-License-Identifier: Apache-2.0
"""nearscan models: for people and for scripts; every fault is said before a patient comes."""

import hashlib
import json
import os
import shutil

import pytest
import yaml
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.commands import models as command
from appliance.inference.card import read_model, shipped_models
from appliance.inference.gpu import find_gpu

no_gpu = pytest.mark.skipif(not isinstance(find_gpu(), str), reason="this machine has a GPU")


@pytest.fixture
def site(tmp_path):
    """A site with its own copy of the shipped models: `site(*arguments)` runs the command."""
    (tmp_path / "data").mkdir()
    shutil.copytree(shipped_models(), tmp_path / "models")
    edit(tmp_path / "models", lambda card: card["input"].update(typical_px=32))  # the time trial is a small one
    edit(tmp_path / "models", lambda card: card.update(version="1"))
    file = tmp_path / "site.yaml"
    file.write_text(f"site: {{name: test, data_dir: {tmp_path}/data}}\nmodels: {{dir: {tmp_path}/models}}\n")

    def run(*arguments):
        return CliRunner().invoke(main, ["models", *arguments, "--config", str(file)])

    run.folder = tmp_path
    return run


def edit(folder, change, name="mr-denoise"):
    path = folder / f"{name}.yaml"
    card = yaml.safe_load(path.read_text())
    change(card)
    path.write_text(yaml.safe_dump(card))


def replace_model(folder, onnx):
    """Put another ONNX file in, with its digest in the card."""
    (folder / "mr-denoise.onnx").write_bytes(onnx)
    edit(folder, lambda card: card.update(sha256=hashlib.sha256(onnx).hexdigest()))


def checked(site, *arguments):
    result = site("check", "mr-denoise", "--json", *arguments)
    return result.exit_code, {row["backend"]: row for row in json.loads(result.stdout)["mr-denoise"]}


def new_version(site, version="2"):
    folder = site.folder / f"made-{version}"
    shutil.copytree(site.folder / "models", folder)
    edit(folder, lambda card: card.update(version=version))
    return folder


def test_every_shipped_model_is_green_on_every_backend_that_is_here():
    """Without a site: what came with nearscan."""
    result = CliRunner().invoke(main, ["models", "check", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert set(found) == {path.stem for path in shipped_models().glob("*.yaml")}
    for rows in found.values():
        by_name = {row["backend"]: row for row in rows}
        assert by_name["card"]["result"] == by_name["openvino f32"]["result"] == "ok"
        assert by_name["onnxruntime f32"]["result"] == "ok"
        assert all(row["max_error"] <= row["tolerance"] for row in rows if "max_error" in row)


@no_gpu
def test_a_backend_that_is_not_here_says_why_and_is_no_failure(site):
    code, rows = checked(site)
    assert code == 0
    for name in ("tensorrt f32", "tensorrt_rtx f32", "onnxruntime-cuda f32"):
        assert rows[name]["result"] == "not available" and rows[name]["why"].startswith("no usable GPU: ")


def test_the_table_for_people(site):
    result = site("check")
    lines = result.stdout.splitlines()
    assert "mr-denoise" in lines
    assert any(line.startswith("card") and "golden cases" in line for line in lines)
    assert any(line.startswith("openvino f32") and " ok " in line and " of 2.0e-05" in line for line in lines)
    assert result.exit_code == 0


def test_a_digest_that_differs(site):
    path = site.folder / "models" / "mr-denoise.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    code, rows = checked(site)
    assert code == 1 and list(rows) == ["card"]
    assert "mr-denoise.yaml: sha256 of mr-denoise.onnx is " in rows["card"]["why"]


def test_an_operator_that_no_backend_knows(site):
    folder = site.folder / "models"
    replace_model(folder, read_model("mr-denoise", folder).onnx.replace(b"DepthToSpace", b"DepthToSpice"))
    code, rows = checked(site)
    assert code == 1 and rows["card"]["result"] == "ok"
    for name in ("openvino f32", "onnxruntime f32"):
        assert rows[name]["result"] == "failed"
        assert "cannot load the model: " in rows[name]["why"] and "DepthToSpice" in rows[name]["why"]


def test_an_input_of_another_name_and_of_another_size(site):
    folder = site.folder / "models"
    edit(folder, lambda card: card["input"].update(name="picture"))
    code, rows = checked(site)
    assert code == 1
    assert rows["openvino f32"]["why"] == (
        "openvino: the model's inputs are image_and_noise_level; the card says picture; correct the card or restore "
        "the model file"
    )
    edit(folder, lambda card: card["input"].update(name="image_and_noise_level", channels=["image"]))
    code, rows = checked(site)
    assert code == 1 and list(rows) == ["card"]
    assert ": mr-denoise.golden.npz: case " in rows["card"]["why"]
    assert rows["card"]["why"].endswith(" and 1 outputs, which is not what the card says; write it again")


def test_weights_that_are_not_numbers(site):
    """A hundred NaN in the middle of a model with a right digest: some engines hide them behind a later operator."""
    folder = site.folder / "models"
    onnx = bytearray(read_model("mr-denoise", folder).onnx)
    middle = len(onnx) // 2  # nearly all of the file is weights
    onnx[middle : middle + 400] = b"\xff" * 400  # 0xffffffff is a NaN
    replace_model(folder, bytes(onnx))
    code, rows = checked(site)
    assert code == 1
    for name in ("openvino f32", "onnxruntime f32"):
        assert rows[name]["result"] == "failed"
        assert rows[name]["why"].startswith("golden case ") and " missed by " in rows[name]["why"]


def test_a_machine_that_is_too_slow(site):
    """By a card that asks for what no machine can do; the clock that stands still is set going."""
    edit(site.folder / "models", lambda card: card.update(deadline_ms=1e-9))
    ticks = iter(range(0, 10**12, 1_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.inference.parity.now_ns", ticks.__next__)
        code, rows = checked(site)
    assert code == 1
    assert rows["onnxruntime f32"]["why"] == (
        "too slow here: 1.0 ms at 32 x 32 (95th percentile, best of 5 rounds), the card's deadline is 1e-09 ms"
    )


def test_list_and_show(site):
    site("activate", "mr-denoise", "2", "--from", str(new_version(site)))
    rows = [row for row in json.loads(site("list", "--json").stdout) if row["model"] == "mr-denoise"]
    assert [(row["version"], row["state"]) for row in rows] == [("2", "active"), ("1", "before")]
    assert "mr-denoise  2        active" in site("list").stdout
    assert json.loads(site("show", "mr-denoise", "--json").stdout)["version"] == "2"
    assert yaml.safe_load(site("show", "mr-denoise").stdout)["use"] == "research use only, not for diagnosis"
    result = site("show", "mr-denoice")
    assert result.exit_code == 1 and "no such model card; models in this folder: " in result.stderr


def test_list_says_which_version_is_unusable(site):
    site("activate", "mr-denoise", "2", "--from", str(new_version(site)))
    (site.folder / "data" / "models" / "mr-denoise" / "2" / "mr-denoise.onnx").unlink()
    row = next(row for row in json.loads(site("list", "--json").stdout) if row["model"] == "mr-denoise")
    assert row["version"] == "2" and row["state"] == "active, unusable"
    assert "cannot read mr-denoise.onnx: No such file or directory" in row["what"]


def test_activate_and_rollback(site):
    folder = new_version(site)
    result = site("activate", "mr-denoise", "2", "--from", str(folder))
    assert result.exit_code == 0, result.output
    assert "mr-denoise: version 2 is active from the next scan on" in result.stdout
    assert checked(site)[1]["card"]["why"].startswith("version 2, ")
    assert site("rollback", "mr-denoise").exit_code == 0
    assert checked(site)[1]["card"]["why"].startswith("version 1, ")
    result = site("rollback", "mr-denoise")
    assert result.exit_code == 1
    assert result.stderr == "models: mr-denoise is the version that came with nearscan; there is none before it\n"


def test_a_version_that_fails_here_is_not_activated(site):
    folder = new_version(site)
    replace_model(folder, read_model("mr-denoise", folder).onnx.replace(b"DepthToSpace", b"DepthToSpice"))
    result = site("activate", "mr-denoise", "2", "--from", str(folder))
    assert result.exit_code == 1
    assert result.stderr == "models: mr-denoise version 2 passes on no backend here; nothing was changed\n"
    assert "cannot load the model" in result.stdout  # the table says why
    assert checked(site)[1]["card"]["why"].startswith("version 1, ")


def test_check_a_version_before_it_is_activated(site):
    code, rows = checked(site, "--from", str(new_version(site)))
    assert code == 0 and rows["card"]["why"].startswith("version 2, ")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user, as only root may")
@pytest.mark.parametrize("arguments", [("activate", "mr-denoise", "1"), ("rollback", "mr-denoise"), ("build",)])
def test_a_folder_that_belongs_to_the_service(site, arguments):
    os.chown(site.folder / "data", 1, 1)
    result = site(*arguments)
    assert result.exit_code == 1
    assert result.stderr == (
        f"{site.folder}/data: belongs to daemon; run this as that user: runuser -u daemon -- nearscan …\n"
    )


def test_without_a_site_nothing_is_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SITE_FILE", tmp_path / "site.yaml")
    result = CliRunner().invoke(main, ["models", "activate", "mr-denoise", "1"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"models: {tmp_path}/site.yaml is not there, so there is no site to change; give its file by --config\n"
    )


@no_gpu
def test_build_without_a_gpu_asks_for_which(site):
    result = site("build")
    assert result.exit_code == 1
    assert result.stderr.startswith("models: no usable GPU: ")
    assert result.stderr.endswith("; say for which GPU to build, such as --for sm_86\n")


def test_build_for_a_gpu_that_is_not_here(site):
    pytest.importorskip("tensorrt_rtx_bindings", reason="requirements/dev.txt is not installed")
    result = site("build", "mr-denoise", "--for", "sm_86", "--for", "sm_120", "--json")
    rows = json.loads(result.stdout)
    assert [(row["backend"], row["gpu"]) for row in rows] == [("tensorrt_rtx", "sm_86"), ("tensorrt_rtx", "sm_120")]
    engines = site.folder / "data" / "engines"
    assert engines.stat().st_mode & 0o777 == 0o700
    assert sorted(row["file"] for row in rows) == sorted(str(path) for path in engines.iterdir())
    assert "sm_86" in site("build", "mr-denoise", "--for", "sm_86").stdout
    result = site("build", "mr-denoise", "--for", "sm_90")
    assert result.exit_code == 1 and "not for sm_90" in result.stderr
