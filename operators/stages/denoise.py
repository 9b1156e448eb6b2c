# SPDX-License-Identifier: Apache-2.0
"""Take the noise out of magnitude images with a shipped model.

In:  (y, x) float32, any device; attachments["noise_map"] (y, x), standard deviation in image units, if known
Out: (y, x) float32, same device

The model names the noise; it is subtracted here, in float32, and at most four standard deviations of it: where
there is no noise nothing changes, and no structure can appear that is larger than the noise was. Nor does a pixel
go below zero, which a magnitude cannot be.
Reference: Zhang, Zuo, Zhang 2018 (FFDNet), doi:10.1109/TIP.2018.2839891; the model's card for what it was tried on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field

from appliance.arrays import namespace
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import IMAGE_AXES, Array, Frame, Scan, read_only
from appliance.imaging.noise import estimate_noise
from appliance.inference.open_model import LiveModel, open_model
from operators import OperatorSettings

MOST_SIGMA = 4.0  # a change beyond this is not noise


class Settings(OperatorSettings):
    model: str = Field(
        "mr-denoise", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the model: its card's file name."
    )
    strength: float = Field(1.0, ge=0, le=1, description="Part of the noise to take out. 0: the image as it is.")
    precision: Literal["auto", "f32", "bf16"] = Field(
        "auto", description="Arithmetic of the model. 'auto': bf16 where the CPU has it, else f32."
    )
    threads: int = Field(2, ge=1, le=64, description="CPU threads of the model.")


def remove_noise(
    image: Array,
    noise_level: Array | float,
    scale: float,
    run: Callable[[Array], tuple[Array, ...]],
    strength: float = 1.0,
) -> Array:
    """Return `image` (y, x) less the noise that the model `run` names, as new float32 array on the same device.

    `noise_level` is the standard deviation in image units, one or (y, x); `scale` brings the image to about 1.
    """
    xp = namespace(image)
    level = xp.maximum(xp.asarray(noise_level, dtype=xp.float32), 0)
    both = xp.stack([image, xp.broadcast_to(level, image.shape)]) / xp.float32(scale)
    if any(n % 2 for n in image.shape):  # the model works on every second pixel
        both = xp.pad(both, [(0, 0), *((0, n % 2) for n in image.shape)], mode="reflect")
    noise = run(both[None])[0][0, 0, : image.shape[0], : image.shape[1]] * xp.float32(scale)
    most = MOST_SIGMA * level
    return image - xp.float32(strength) * xp.clip(noise, -most, xp.minimum(most, xp.abs(image)))


class Denoise:
    """One scan. The scale is fixed by its first frame, so that frames stay comparable."""

    def __init__(self, settings: Settings, model: LiveModel) -> None:
        self._settings = settings
        self._live = model
        self._scale = 0.0  # until a frame decides
        self._scan_id = ""
        self._noise_level = 0.0

    def begin(self, scan: Scan) -> Scan:
        if scan.axes != IMAGE_AXES:
            raise StageError(
                f"denoise: expected axes {IMAGE_AXES}, got {scan.axes}; put reconstruct first", scan.scan_id
            )
        self._scan_id = scan.scan_id
        if None not in scan.shape:
            self._check_size(scan.shape)
            self._live.warm_up(*(n + n % 2 for n in scan.shape if n is not None))
        return scan

    def _check_size(self, shape: tuple[int | None, ...]) -> None:
        least, most = self._live.card.input.smallest_px, self._live.card.input.largest_px
        if not all(n is not None and least <= n <= most for n in shape):
            name = self._live.card.name
            raise StageError(f"denoise: {name} takes {least} to {most} pixels a side, got {shape}", self._scan_id)

    def _denoise(self, image: Array, level: Array | float, scale: float) -> Array:
        return remove_noise(image, level, scale, self._live.run, self._settings.strength)

    def frame(self, frame: Frame) -> Frame:
        if self._settings.strength == 0:
            return frame
        image = frame.array
        self._check_size(image.shape)
        level = frame.attachments.get("noise_map")
        if level is None:
            level = self._noise_level = estimate_noise(image)
        elif level.shape != image.shape:
            raise StageError(
                f"denoise: noise_map has shape {level.shape}, the image {image.shape}; correct the stage before",
                frame.scan_id,
            )
        scale = self._scale or float(namespace(image).percentile(image, 99.5))
        result = self._denoise(image, level, scale if scale > 0 else 1.0)
        if not bool(namespace(result).isfinite(result).all()):
            raise StageError(
                f"denoise: frame {frame.sequence} gave values that are not finite; look at its input", frame.scan_id
            )
        self._scale = max(scale, 0.0)  # an empty frame does not decide
        return replace(frame, array=read_only(result))

    def end(self) -> Iterable[Frame]:
        return ()

    def status(self) -> dict[str, Any]:
        return {**self._live.status(), "strength": self._settings.strength, "noise_level": self._noise_level}

    @property
    def model(self) -> tuple[str, str, str]:
        return self._live.provenance


def make(settings: Settings, context: Context) -> Denoise:
    """Open the model (once per process). Raises ModelError when it is missing, altered or fails its golden test."""
    return Denoise(settings, open_model(settings.model, context, settings.precision, settings.threads))
