# SPDX-License-Identifier: Apache-2.0
"""Model cards: what a model is, what it was tried on, and how to tell that it is itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import appliance
from appliance.errors import ModelError
from appliance.imaging.denoise_domains import DomainName
from appliance.inference.backend import Precision, Shape, Shapes, Signature
from appliance.inference.drift import Reference
from appliance.inference.golden import Case, read_golden

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # never a path
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Validation(_Part):
    """Peak signal to noise in the body, one kind of image at one noise level; `other` is a named peer."""

    data: Text
    noise_percent: float = Field(ge=0, description="standard deviation over the image's maximum")
    noisy_db: float
    model_db: float
    other: Text
    other_db: float


class Input(_Part):
    name: Text
    channels: tuple[Text, ...] = Field(min_length=1)
    scaling: Text
    domain: DomainName = Field("mr-magnitude", description="what kind of image: decides scale, noise estimate, range")
    smallest_px: int = Field(ge=1)
    typical_px: int = Field(ge=1)
    largest_px: int = Field(ge=1)
    multiple_px: int = Field(1, ge=1, description="both sides are multiples of it")

    def padded(self, sides: Iterable[int]) -> tuple[int, ...]:
        """The least sides that the model takes and that these fit into."""
        return tuple(n + -n % self.multiple_px for n in sides)


class Output(_Part):
    name: Text
    meaning: Text


class Memory(_Part):
    """What a streaming model takes from one frame to the next: its second input and output, zeros at first."""

    name: Text
    output: Text
    channels: int = Field(ge=1)
    every_px: int = Field(ge=1, description="2: half the image's resolution")

    def shape(self, y: int, x: int) -> Shape:
        """The memory's shape beside an image of `y` by `x` pixels."""
        return (1, self.channels, y // self.every_px, x // self.every_px)


class Golden(_Part):
    """Cases kept from training; `tolerance` is the largest error at each precision, in units of the larger of 1 and
    the largest value of a case (arithmetic's rounding grows with what it adds up)."""

    file: FileName
    sha256: Sha256
    tolerance: dict[Precision, Annotated[float, Field(gt=0)]]


class Training(_Part):
    command: Text
    time: Text


class Card(_Part):
    """models/NAME.yaml."""

    name: FileName
    version: Text
    what: Text
    use: Literal["research use only, not for diagnosis"]
    trained_on: Text
    validated_on: tuple[Validation, ...] = Field(min_length=1)
    limits: tuple[Text, ...] = Field(min_length=1)
    file: FileName
    sha256: Sha256
    input: Input
    output: Output
    memory: Memory | None = None
    golden: Golden
    deadline_ms: float = Field(gt=0)
    drift: Reference | None = None
    training: Training

    @property
    def signature(self) -> Signature:
        """Names and sizes of what goes in and comes out."""
        sides = (self.input.smallest_px, self.input.typical_px, self.input.largest_px)
        n = len(self.input.channels)
        inputs = {self.input.name: Shapes(*((1, n, side, side) for side in sides))}
        if self.memory is None:
            return Signature(inputs, (self.output.name,))
        inputs[self.memory.name] = Shapes(*(self.memory.shape(side, side) for side in sides))
        return Signature(inputs, (self.output.name, self.memory.output))


class Model(NamedTuple):
    """A card and the bytes it vouches for."""

    card: Card
    onnx: bytes
    golden: tuple[Case, ...]


def shipped_models() -> Path:
    """Return the folder of the models that came with this installation."""
    package = Path(appliance.__file__).parent
    packaged = package / "shipped_models"
    return packaged if packaged.is_dir() else package.parent / "models"  # a wheel, or a checkout


def read_model(name: str, folder: Path) -> Model:
    """Read `name`'s card, model and golden file, and check their digests. Raises ModelError."""
    path = folder / f"{name}.yaml"
    card = _read_card(path)
    if card.name != name:
        raise ModelError(f"{path}: is the card of {card.name!r}; give the file that name")
    onnx = _read_vouched(path, card.file, card.sha256)
    golden = _read_vouched(path, card.golden.file, card.golden.sha256)
    try:
        cases = read_golden(golden)
        for case in cases:
            _check_case(case, card.signature)
        return Model(card, onnx, cases)
    except ModelError as e:
        raise ModelError(f"{path}: {card.golden.file}: {e}") from e


def _check_case(case: Case, signature: Signature) -> None:
    found = [array.shape[1:2] for array in case.inputs], len(case.outputs)
    if found != ([shapes.typical[1:2] for shapes in signature.inputs.values()], len(signature.outputs)):
        shapes = ", ".join(str(array.shape) for array in case.inputs)
        raise ModelError(
            f"case {case.name!r} has inputs {shapes} and {len(case.outputs)} outputs, which is not what the card says; "
            "write it again"
        )


def _read_card(path: Path) -> Card:
    try:
        content = yaml.safe_load(path.read_bytes())
        return Card.model_validate(content)
    except FileNotFoundError as e:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise ModelError(f"{path}: no such model card; models in this folder: {known}") from e
    except OSError as e:
        raise ModelError(f"{path}: cannot read: {e.strerror}; check its permissions") from e
    except yaml.YAMLError as e:
        raise ModelError(f"{path}: not YAML: {str(e).splitlines()[0]}; restore the file") from e
    except ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg'].lower()}" for p in e.errors())
        raise ModelError(f"{path}: {problems}; correct the card") from e


def _read_vouched(card: Path, file: str, expected: str) -> bytes:
    """Return the bytes of `file` beside `card` if they have the digest that the card says."""
    try:
        content = (card.parent / file).read_bytes()
    except OSError as e:
        raise ModelError(f"{card}: cannot read {file}: {e.strerror}; restore the file") from e
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ModelError(f"{card}: sha256 of {file} is {digest}, card says {expected}; restore the file or rebuild")
    return content
