# SPDX-License-Identifier: Apache-2.0
"""Which operators there are: one file in operators/sources, operators/stages or operators/sinks is one operator.

Rule: a name is looked up among the files that exist; nothing from the outside ever becomes a module name.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Literal

import operators
from appliance.errors import ConfigError

Kind = Literal["source", "stage", "sink"]
KINDS: tuple[Kind, ...] = ("source", "stage", "sink")

_FOLDER = Path(operators.__file__).parent
_FILE = re.compile(r"[a-z][a-z0-9_]*\.py")


def names(kind: Kind) -> list[str]:
    """Names of the operators of one kind, sorted."""
    return sorted(path.stem for path in (_FOLDER / f"{kind}s").iterdir() if _FILE.fullmatch(path.name))


def load(kind: Kind, name: str) -> ModuleType:
    """Import one operator's file.

    Raises
    ------
    ConfigError
        There is no such file, it cannot be imported, or it does not offer `Settings` and `make`.
    """
    if name not in names(kind):
        raise ConfigError(f"unknown {kind} {name!r}; known: {', '.join(names(kind))}")
    try:
        module = importlib.import_module(f"operators.{kind}s.{name}")
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"operators/{kind}s/{name}.py cannot be loaded: {error}; repair the file") from error
    for part in ("Settings", "make"):
        if not hasattr(module, part):
            raise ConfigError(f"operators/{kind}s/{name}.py has no {part!r}; see CONTRIBUTING.md")
    return module
