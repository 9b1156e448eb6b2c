# SPDX-License-Identifier: Apache-2.0
"""Write a trained model: its ONNX file, its golden cases, and its card with what was measured."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from appliance.imaging.denoise_domains import DOMAINS
from appliance.imaging.remove_noise import remove_noise
from appliance.inference import drift
from appliance.inference.card import Card, Golden, Validation
from appliance.inference.golden import write_golden
from appliance.inference.onnxruntime import OnnxRuntime

Array = NDArray[np.float32]
Run = Callable[..., tuple[Array, ...]]


def arguments(doc: str, series: bool = False) -> argparse.Namespace:
    """Return what every training script is told on the command line; `series`: it can measure on real slices."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if series:
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
    measure: Callable[[Run], Sequence[Validation]],
    met: Iterable[tuple[Array, float]] = (),
) -> Card:
    """Write NAME.onnx, NAME.golden.npz and NAME.yaml into `folder` and return the card, whose figures are printed.

    `draft` is the card without what is found out here: digests, golden cases, the rows that `measure` gives for the
    exported model on the reference backend, and how images like those of training (`met`: a hundred or more of them,
    brightest tissue at about 1, each with its noise level) are distributed.
    """
    name = draft["name"]
    (folder / f"{name}.onnx").write_bytes(model)
    draft = {**draft, "file": f"{name}.onnx", "sha256": hashlib.sha256(model).hexdigest()}
    signature = Card.model_construct(**draft).signature
    digest = write_golden(folder / f"{name}.golden.npz", model, signature, golden_inputs)
    golden = Golden(file=f"{name}.golden.npz", sha256=digest, tolerance=dict(tolerance))
    run = OnnxRuntime(threads=2).load(model, signature, "f32").run
    card = Card(**draft, golden=golden, validated_on=tuple(measure(run)))
    if images := list(met):
        card = card.model_copy(update={"drift": _reference(card, run, images)})
    text = yaml.safe_dump(
        card.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True, width=120
    )
    (folder / f"{name}.yaml").write_text(text)
    for row in card.validated_on:
        print(row)
    return card


def _reference(card: Card, run: Run, met: Sequence[tuple[Array, float]]) -> drift.Reference:
    multiple, domain = card.input.multiple_px, DOMAINS[card.input.domain].scaled()
    results = []
    for image, level in met:
        memory = np.zeros(card.memory.shape(*image.shape), np.float32) if card.memory else None
        results.append(remove_noise(image, level, 1.0, run, memory, multiple_px=multiple, domain=domain).image)
    images, levels = [image for image, _ in met], [np.float32(level) for _, level in met]
    return drift.Reference.model_validate(drift.reference(images, results, levels))
