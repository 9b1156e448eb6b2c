# SPDX-License-Identifier: Apache-2.0
"""A file is replaced whole, on disk, with the mode asked for; a failure leaves the old one."""

import os

import pytest

from appliance.replace_file import replace_file


def test_the_new_content_stands_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "active"
    replace_file(path, b"one")
    replace_file(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two" and path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["active"]


def test_content_and_name_are_synced_before_and_after_the_exchange(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, real=real: (done.append(name), real(*given))[1])
    replace_file(tmp_path / "active", b"one")
    assert done == ["fsync", "replace", "fsync"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "active"
    replace_file(path, b"old")

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
