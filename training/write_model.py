# SPDX-License-Identifier: Apache-2.0
"""Write a trained model: its ONNX file, its golden cases, and its card with what was measured."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from appliance.inference.card import Card, Detection, Golden, Validation
from appliance.inference.golden import write_golden
from appliance.inference.onnxruntime import OnnxRuntime

Array = NDArray[np.float32]
Run = Callable[..., tuple[Array, ...]]


def arguments(doc: str) -> argparse.Namespace:
    """Return what every training script is told on the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, help="tar archive of a DICOM series to measure on, besides phantoms")
    parser.add_argument("--folder", type=Path, default=Path("models"), help="where the files go")
    parser.add_argument("--reduced", action="store_true", help="minutes, for a look; give another folder")
    return parser.parse_args()


def write_model(
    folder: Path,
    model: bytes,
    draft: Mapping[str, Any],
    golden_inputs: Mapping[str, Sequence[Array]],
    tolerance: Mapping[str, float],
    measure: Callable[[Run], Sequence[Validation | Detection]],
) -> Card:
    """Write NAME.onnx, NAME.golden.npz and NAME.yaml into `folder` and return the card.

    `draft` is the card without what is found out here: digests, golden cases, and the rows that `measure` gives for
    the exported model on the reference backend.
    """
    name = draft["name"]
    (folder / f"{name}.onnx").write_bytes(model)
    draft = {**draft, "file": f"{name}.onnx", "sha256": hashlib.sha256(model).hexdigest()}
    signature = Card.model_construct(**draft).signature
    digest = write_golden(folder / f"{name}.golden.npz", model, signature, golden_inputs)
    golden = Golden(file=f"{name}.golden.npz", sha256=digest, tolerance=dict(tolerance))
    rows = measure(OnnxRuntime(threads=2).load(model, signature, "f32").run)
    card = Card(**draft, golden=golden, validated_on=tuple(rows))
    text = yaml.safe_dump(
        card.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120
    )
    (folder / f"{name}.yaml").write_text(text)
    return card
