# SPDX-License-Identifier: Apache-2.0
"""Which version of a model is in use: the one that came with nearscan, or what this site activated since.

data_dir/models/NAME/VERSION/ holds the files of an installed version. data_dir/models/NAME/active names the versions
that were activated, newest first, one a line; behind the last of them is the one that came with nearscan.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

from appliance.errors import ModelError
from appliance.inference.card import Model, read_model, shipped_models

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Place(NamedTuple):
    """Where the models of a site are."""

    shipped: Path  # `models.dir`, or what came with nearscan
    installed: Path

    def names(self) -> list[str]:
        """Every model that is here."""
        cards = {path.stem for path in self.shipped.glob("*.yaml")}
        return sorted(cards | {path.parent.name for path in self.installed.glob("*/active")})

    def history(self, name: str) -> tuple[str, ...]:
        """The activated versions, newest first. Raises ModelError."""
        path = self.installed / name / "active"
        try:
            lines = path.read_text().split("\n")
        except FileNotFoundError:
            return ()
        except (OSError, ValueError) as e:
            raise ModelError(f"{path}: cannot read: {e}; remove it to use the model that came with nearscan") from e
        found = tuple(filter(None, lines))
        if not all(_VERSION.fullmatch(version) for version in found):
            raise ModelError(f"{path}: not a list of versions; remove it to use the model that came with nearscan")
        return found

    def versions(self, name: str) -> list[str]:
        """The installed versions, active or not."""
        return sorted(path.parent.name for path in self.installed.glob(f"{name}/*/{name}.yaml"))

    def folders(self, name: str) -> list[Path]:
        """The folders of the active version and of those before it. Raises ModelError."""
        return [*(self.installed / name / version for version in self.history(name)), self.shipped]

    def stamp(self, name: str) -> tuple[object, ...]:
        """Return what changes when another version becomes active, or the files of the active one change."""
        active = self.installed / name / "active"
        try:
            folder = self.folders(name)[0]
        except ModelError:
            folder = self.shipped
        return tuple((path, _changed(path)) for path in (active, *sorted(folder.glob(f"{name}.*"))))


def place(models_dir: Path | None, data_dir: Path) -> Place:
    """Where the models are for this `models.dir` (None: what came with nearscan) and `site.data_dir`."""
    return Place(models_dir or shipped_models(), data_dir / "models")


def activate(where: Place, name: str, version: str, source: Path | None, prove: Callable[[Model], object]) -> Path:
    """Make `version` the active one, from the folder `source` or as it is installed; `prove` raises if it is no good.

    A kill at any moment leaves the old or the new version active, whole. Raises ModelError.
    """
    if not _VERSION.fullmatch(version):
        raise ModelError(f"models: {version!r} is no version; use letters, digits, '.', '_' and '-'")
    folder = where.installed / name / version
    given = source or (folder if folder.is_dir() else where.shipped)
    model = read_model(name, given)
    if model.card.version != version:
        raise ModelError(
            f"{given}/{name}.yaml: holds version {model.card.version!r}, not {version!r}; give the folder of that "
            "version with --from"
        )
    prove(model)
    if not folder.is_dir():
        _install(model, given, folder)
    elif read_model(name, folder).card != model.card:
        raise ModelError(f"{folder}: another model is installed as version {version}; give the new one a new version")
    _write_history(where, name, (version, *(v for v in where.history(name) if v != version)))
    return folder


def rollback(where: Place, name: str, prove: Callable[[Model], object]) -> Path:
    """Make the version before the active one active again, once `prove` has not raised. Raises ModelError."""
    folders = where.folders(name)
    if len(folders) == 1:
        raise ModelError(f"models: {name} is the version that came with nearscan; there is none before it")
    prove(read_model(name, folders[1]))
    _write_history(where, name, where.history(name)[1:])
    return folders[1]


def _install(model: Model, given: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_over in folder.parent.glob(".new-*"):  # of a kill
        shutil.rmtree(left_over)
    draft = Path(mkdtemp(dir=folder.parent, prefix=".new-"))
    for file in (f"{model.card.name}.yaml", model.card.file, model.card.golden.file):
        shutil.copyfile(given / file, draft / file)
        _sync(draft / file)
    if read_model(model.card.name, draft).card != model.card:
        raise ModelError(f"{given}: the files changed while they were installed; try again")
    draft.chmod(0o755)
    _sync(draft)
    draft.rename(folder)
    _sync(folder.parent)


def _write_history(where: Place, name: str, history: tuple[str, ...]) -> None:
    path = where.installed / name / "active"
    draft = path.with_suffix(".new")
    draft.write_text("".join(f"{version}\n" for version in history))
    _sync(draft)
    os.replace(draft, path)
    _sync(path.parent)


def _changed(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
