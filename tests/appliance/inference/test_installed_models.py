# SPDX-License-Identifier: Apache-2.0
"""Versions of a model: activated and rolled back whole, whatever interrupts it; refused where something is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from appliance.errors import ModelError
from appliance.inference.card import read_model, shipped_models
from appliance.inference.installed import activate, place, rollback


def good(model):
    """Whatever it is, it passes."""


def bad(model):
    raise ModelError("it fails here")


@pytest.fixture
def where(tmp_path):
    shutil.copytree(shipped_models(), tmp_path / "shipped")
    path = tmp_path / "shipped" / "mr-denoise.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"version": "1"}))
    return place(tmp_path / "shipped", tmp_path / "data")


def made(where, version, what="", name="made"):
    """A folder with the shipped model as another version."""
    folder = where.shipped.parent / f"{name}-{version}"
    shutil.copytree(where.shipped, folder)
    path = folder / "mr-denoise.yaml"
    card = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(card | {"version": version, "what": what or card["what"]}))
    return folder


def active(where):
    return read_model("mr-denoise", where.folders("mr-denoise")[0]).card.version


def test_versions_come_and_go(where):
    assert active(where) == "1" and where.history("mr-denoise") == ()
    for version in ("2", "3"):
        activate(where, "mr-denoise", version, made(where, version), good)
        assert active(where) == version
    assert where.versions("mr-denoise") == ["2", "3"]
    rollback(where, "mr-denoise", good)
    assert active(where) == "2"
    activate(where, "mr-denoise", "3", None, good)  # it is installed still
    assert where.history("mr-denoise") == ("3", "2")
    rollback(where, "mr-denoise", good)
    rollback(where, "mr-denoise", good)
    assert active(where) == "1" and where.folders("mr-denoise") == [where.shipped]
    with pytest.raises(ModelError, match="mr-denoise is the version that came with nearscan; there is none before it"):
        rollback(where, "mr-denoise", good)


def test_what_came_with_nearscan_can_be_kept(where):
    """An update then does not change it."""
    activate(where, "mr-denoise", "1", None, good)
    shutil.rmtree(where.shipped)
    assert active(where) == "1"


def test_a_version_that_fails_here_changes_nothing(where):
    with pytest.raises(ModelError, match="it fails here"):
        activate(where, "mr-denoise", "2", made(where, "2"), bad)
    assert active(where) == "1" and not where.installed.exists()
    activate(where, "mr-denoise", "2", where.shipped.parent / "made-2", good)
    with pytest.raises(ModelError, match="it fails here"):
        rollback(where, "mr-denoise", bad)
    assert active(where) == "2"


def test_another_model_under_the_same_version(where):
    activate(where, "mr-denoise", "2", made(where, "2"), good)
    other = made(where, "2", what="another", name="other")
    with pytest.raises(ModelError) as caught:
        activate(where, "mr-denoise", "2", other, good)
    assert str(caught.value) == (
        f"{where.installed}/mr-denoise/2: another model is installed as version 2; give the new one a new version"
    )


def test_a_folder_with_another_version(where):
    folder = made(where, "2")
    with pytest.raises(ModelError) as caught:
        activate(where, "mr-denoise", "3", folder, good)
    assert str(caught.value) == (
        f"{folder}/mr-denoise.yaml: holds version '2', not '3'; give the folder of that version with --from"
    )


@pytest.mark.parametrize("version", ["../../etc", "", "a/b", ".new-x", "2\n3"])
def test_a_version_is_never_a_path(where, version):
    with pytest.raises(ModelError, match="is no version; use letters, digits"):
        activate(where, "mr-denoise", version, where.shipped, good)


@pytest.mark.parametrize("content", [b"../../../etc\n", b"\xff\xfe", b"2 3\n"])
def test_a_list_of_versions_that_somebody_damaged(where, content):
    activate(where, "mr-denoise", "2", made(where, "2"), good)
    path = where.installed / "mr-denoise" / "active"
    path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        where.history("mr-denoise")
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("remove it to use the model that came with nearscan")


KILLED = """
import os, signal, sys
from pathlib import Path
from appliance.inference import installed
from appliance.inference.installed import activate, place

left = int(sys.argv[1])

def counted(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

installed.shutil.copyfile = counted(installed.shutil.copyfile)
for name in ("fsync", "replace", "rename", "chmod"):
    setattr(os, name, counted(getattr(os, name)))
activate(place(Path(sys.argv[2]), Path(sys.argv[3])), "mr-denoise", "2", Path(sys.argv[4]), lambda model: None)
print("done")
"""


def test_a_kill_at_any_moment_leaves_the_old_version_or_the_new_one(where):
    """SIGKILL before each step in turn; then once more, to the end."""
    folder, data = made(where, "2"), where.installed.parent
    found = []
    for n_steps in range(40):
        shutil.rmtree(data, ignore_errors=True)
        command = [sys.executable, "-c", KILLED, str(n_steps), str(where.shipped), str(data), str(folder)]
        child = subprocess.run(command, capture_output=True, text=True)
        found.append(active(where))  # reads it whole, with its digests
        activate(where, "mr-denoise", "2", folder, good)
        assert active(where) == "2" and list(where.installed.glob("*/.new-*")) == []
        if child.stdout == "done\n":
            break
        assert child.returncode == -9, child.stderr
    assert found[0] == "1" and found[-1] == "2" and found == sorted(found)
    assert 10 < len(found) < 40


def test_files_are_copied_not_linked(where):
    folder = made(where, "2")
    installed = activate(where, "mr-denoise", "2", folder, good)
    shutil.rmtree(folder)
    assert sorted(os.listdir(installed)) == ["mr-denoise.golden.npz", "mr-denoise.onnx", "mr-denoise.yaml"]
    assert Path(installed).stat().st_mode & 0o777 == 0o755
    assert active(where) == "2"
