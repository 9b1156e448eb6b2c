# SPDX-License-Identifier: Apache-2.0
"""The engine cache: built once per key, rebuilt when damaged, refused when others may write."""

import shutil

import pytest

from appliance.errors import ModelError
from appliance.inference.engine_cache import cached_engine, engine_file


class Builds:
    def __init__(self):
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return b"engine %d" % self.count


def test_an_engine_is_built_once_for_each_key(tmp_path):
    build = Builds()
    folder = tmp_path / "data" / "engines"
    assert [cached_engine(folder, key, build) for key in ("a", "b", "a")] == [b"engine 1", b"engine 2", b"engine 1"]
    assert build.count == 2
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(p.suffix for p in folder.iterdir()) == [".engine", ".engine"]  # nothing temporary is left
    assert all(p.stat().st_mode & 0o077 == 0 for p in folder.iterdir())


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:40] + b"X" + b[41:], lambda b: b"", lambda b: b[:10]]
)
def test_a_damaged_engine_is_built_again_and_replaced(tmp_path, damage, caplog):
    folder = tmp_path / "engines"
    build = Builds()
    cached_engine(folder, "a", build)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cached_engine(folder, "a", build) == b"engine 2"
    assert cached_engine(folder, "a", build) == b"engine 2"
    assert f"{path}: damaged, or built for something else; building it again" in caplog.text


def test_an_engine_that_was_built_for_another_gpu_is_not_taken_for_ours(tmp_path):
    """Somebody copied it under our name; its own digest is right."""
    folder = tmp_path / "engines"
    build = Builds()
    cached_engine(folder, "model sm_86", build)
    cached_engine(folder, "model sm_89", build)
    shutil.copy(engine_file(folder, "model sm_86"), engine_file(folder, "model sm_89"))
    assert cached_engine(folder, "model sm_89", build) == b"engine 3"
    assert cached_engine(folder, "model sm_86", build) == b"engine 1"


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build() -> bytes:
        raise ModelError("no")

    with pytest.raises(ModelError, match="no"):
        cached_engine(tmp_path / "engines", "a", build)
    assert list((tmp_path / "engines").iterdir()) == []


def test_a_folder_that_others_may_write_is_refused(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir()
    folder.chmod(0o775)
    with pytest.raises(ModelError) as caught:
        cached_engine(folder, "a", Builds())
    owner = folder.stat().st_uid
    assert str(caught.value) == (
        f"{folder}: mode 0775, owner {owner}: others could replace an engine; delete the folder"
    )


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "engines"
    with pytest.raises(ModelError) as caught:
        cached_engine(folder, "a", Builds())
    assert str(caught.value) == f"{folder}: cannot keep engines: Not a directory; check the disk and the owner"
