# SPDX-License-Identifier: Apache-2.0
"""Take the noise out of MR magnitude, CT or ultrasound images with a shipped model of that kind.

In:  (y, x) float32, any device; attachments["noise_map"] (y, x), standard deviation in image units, if known
Out: (y, x) float32, same device

The model names the noise; appliance/imaging/remove_noise.py subtracts it, within bounds. A streaming model remembers
the frames before, for each slice and contrast on its own. The model's card says what it was tried on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from appliance.arrays import namespace
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import IMAGE_AXES, Array, Frame, Scan, read_only
from appliance.imaging.denoise_domains import DOMAINS
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.drift_watch import Drift, open_drift
from appliance.inference.open_model import LiveModel, open_model
from operators import OperatorSettings

Place = tuple[int, int, int]  # slice, contrast, set

MOST_PLACES = 64  # slices times contrasts whose memory is kept; at 256 x 256 each takes half a megabyte


class Settings(OperatorSettings):
    model: str = Field(
        "mr-denoise", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the model: its card's file name."
    )
    strength: float = Field(1.0, ge=0, le=1, description="Part of the noise to take out. 0: the image as it is.")
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto", description="Arithmetic of the model. 'auto': bf16 where the CPU has it, else f32."
    )
    threads: int = Field(2, ge=1, le=64, description="CPU threads of the model.")


class Denoise:
    """One scan. The scale is fixed by its first frame, so that frames stay comparable."""

    def __init__(self, settings: Settings, model: LiveModel, drift: Drift) -> None:
        self._settings = settings
        self._live, self._drift = model, drift
        self._domain = DOMAINS[model.card.input.domain]
        self._scale = 0.0  # until a frame decides
        self._scan_id = ""
        self._noise_level = 0.0
        self._memories: dict[Place, tuple[str, Array]] = {}  # with the digest of the model whose memory it is

    def begin(self, scan: Scan) -> Scan:
        if scan.axes != IMAGE_AXES:
            raise StageError(
                f"denoise: expected axes {IMAGE_AXES}, got {scan.axes}; put reconstruct first", scan.scan_id
            )
        if scan.modality != self._domain.modality:
            name, modality = self._live.card.name, self._domain.modality
            raise StageError(f"denoise: {name} is for {modality}, got {scan.modality}; name another", scan.scan_id)
        self._scan_id = scan.scan_id
        if None not in scan.shape:
            self._check_size(scan.shape)
            self._live.warm_up(*self._live.card.input.padded(n for n in scan.shape if n is not None))
        return scan

    def _check_size(self, shape: tuple[int | None, ...]) -> None:
        least, most = self._live.card.input.smallest_px, self._live.card.input.largest_px
        if not all(n is not None and least <= n <= most for n in shape):
            name = self._live.card.name
            raise StageError(f"denoise: {name} takes {least} to {most} pixels a side, got {shape}", self._scan_id)

    def frame(self, frame: Frame) -> Frame:
        if self._settings.strength == 0:
            return frame
        self._check_size(frame.array.shape)
        image, level = frame.array, self._level(frame)
        brightest = self._scale or self._domain.first_scale(image)
        scale = brightest or 1.0  # an empty frame has none …
        place = (frame.position.slice, frame.position.contrast, frame.position.set)
        result, memory = remove_noise(
            image,
            level,
            scale,
            self._live.run,
            self._memory(place, image),
            self._settings.strength,
            self._live.card.input.multiple_px,
            self._domain,
        )
        if not bool(namespace(result).isfinite(result).all()):
            raise StageError(
                f"denoise: frame {frame.sequence} gave values that are not finite; look at its input", frame.scan_id
            )
        self._scale = brightest  # … and does not decide
        self._remember(place, memory)
        self._drift.observe(image, result, level, scale, self._settings.strength)
        return replace(frame, array=read_only(result))

    def _level(self, frame: Frame) -> Array | float:
        level = frame.attachments.get("noise_map")
        if level is None:
            self._noise_level = self._domain.estimate(frame.array)
            return self._noise_level
        if level.shape != frame.array.shape:
            raise StageError(
                f"denoise: noise_map has shape {level.shape}, the image {frame.array.shape}; correct the stage before",
                frame.scan_id,
            )
        return level

    def _memory(self, place: Place, image: Array) -> Array | None:
        """Return what the model kept of this place, or the zeros that it starts with."""
        kept = self._live.card.memory
        if kept is None:
            return None
        by, memory = self._memories.get(place, ("", None))
        shape = kept.shape(*self._live.card.input.padded(image.shape))
        if memory is None or memory.shape != shape or by != self._live.provenance[1]:
            return namespace(image).zeros(shape, "float32")
        return memory

    def _remember(self, place: Place, memory: Array | None) -> None:
        if memory is not None:
            self._memories.pop(place, None)
            self._memories[place] = self._live.provenance[1], memory
            if len(self._memories) > MOST_PLACES:
                del self._memories[next(iter(self._memories))]  # the one not seen for longest

    def end(self) -> Iterable[Frame]:
        return ()

    def status(self) -> dict[str, Any]:
        own = {"strength": self._settings.strength, "noise_level": self._noise_level, "drift": self._drift.status()}
        return {**self._live.status(), **own}

    @property
    def model(self) -> tuple[str, str, str]:
        return self._live.provenance


def make(settings: Settings, context: Context) -> Denoise:
    """Open the model (once per process). Raises ModelError when it is missing, altered or fails its golden test."""
    live = open_model(settings.model, context, settings.precision, settings.threads)
    return Denoise(settings, live, open_drift(live, context))
