# SPDX-License-Identifier: Apache-2.0
"""What commissioning learnt of a site: one file for each pipeline, thresholds for each setup of the scanner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import StorageError
from appliance.faults.detector import Rule, default_thresholds
from appliance.replace_file import replace_file

Number = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Learnt(_Part):
    """Of one rule, over clean frames."""

    threshold: Number
    centre: Number  # median …
    spread: Annotated[float, Field(gt=0, allow_inf_nan=False)]  # … and 1.48 MAD


class Setup(_Part):
    """Of one setup of the scanner, e.g. "8 coils, acceleration 2"."""

    n_frames: int = Field(ge=1)
    rules: dict[str, Learnt]

    def unusual(self, measured: dict[str, float]) -> float:
        """Return how far from this site's usual a frame is: 1 is ordinary. A trend to look at, never an alarm."""
        far = [(measured[name] - rule.centre) / rule.spread for name, rule in self.rules.items() if name in measured]
        return float(np.sqrt(np.mean(np.square(far)))) if far else 0.0


class Commissioned(_Part):
    """data_dir/faults/PIPELINE.json."""

    format: Literal[1] = 1
    pipeline: str
    version: str  # of nearscan
    false_alarm_rate: float = Field(gt=0, lt=1)
    setups: dict[str, Setup]


def thresholds_in_force(rules: Mapping[str, Rule], setup: Setup | None, given: Mapping[str, float]) -> dict[str, float]:
    """Return the threshold of each rule that has one: as `given`, else as commissioning learnt it, else the default."""
    learnt = {name: rule.threshold for name, rule in setup.rules.items()} if setup else {}
    defaults = default_thresholds(rules)
    return {name: given.get(name, learnt.get(name, default)) for name, default in defaults.items()}


def commissioned_path(data_dir: Path, pipeline: str) -> Path:
    """Return where the thresholds of a pipeline are."""
    return data_dir / "faults" / f"{pipeline}.json"


def read_commissioned(path: Path) -> Commissioned | None:
    """Read what was learnt; None before commissioning. Raises StorageError when the file is not what it should be."""
    try:
        return Commissioned.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror}; check its permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        what = f"{where}: {first['msg'].lower()}"
        raise StorageError(f"{path}: {what}; run 'nearscan commission {path.stem}' again") from error


def write_commissioned(path: Path, commissioned: Commissioned) -> None:
    """Replace the file whole, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(commissioned.model_dump(), indent=1).encode())
