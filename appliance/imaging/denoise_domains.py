# SPDX-License-Identifier: Apache-2.0
"""What kinds of images a denoiser takes: their scale, how their noise is estimated, and which values they can have.

A model's card names its domain; a pipeline of another modality is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from appliance.arrays import namespace
from appliance.ct.noise import estimate_ct_noise
from appliance.frames import Array
from appliance.imaging.noise import estimate_noise
from appliance.ultrasound.speckle import estimate_speckle

DomainName = Literal["mr-magnitude", "ct-hu", "us-log"]


@dataclass(frozen=True)
class Domain:
    """`scale` brings an image to about 1; None: that of the first frame of a scan, `first_scale`."""

    modality: Literal["MR", "CT", "US"]
    scale: float | None
    lowest: float | None
    highest: float | None
    estimate: Callable[[Array], float]

    def first_scale(self, image: Array) -> float:
        """Return what all frames of a scan are divided by, given its first one; 0: an empty frame decides nothing."""
        if self.scale is not None:
            return self.scale
        return max(0.0, float(namespace(image).percentile(image, 99.5)))  # 0.0 also for NaN

    def scaled(self) -> Domain:
        """Return the domain of images that were divided by `scale` already."""
        lowest, highest = (None if n is None else n / (self.scale or 1.0) for n in (self.lowest, self.highest))
        return replace(self, scale=1.0, lowest=lowest, highest=highest)

    def limited(self, image: Array, noise: Array, most: Array | float) -> Array:
        """Return `noise` within ±`most`, and so that subtracting it drives no pixel of `image` out of its range."""
        xp = namespace(image)
        least: Array | float = -most
        if self.highest is not None:
            least = xp.maximum(least, xp.minimum(image - xp.float32(self.highest), 0))
        if self.lowest is not None:
            most = xp.minimum(most, xp.maximum(image - xp.float32(self.lowest), 0))
        return xp.clip(noise, least, most)


DOMAINS: dict[DomainName, Domain] = {
    "mr-magnitude": Domain("MR", None, 0.0, None, estimate_noise),
    # water is 0, so that bf16 resolves soft tissue to half a Hounsfield unit; noise in air goes below -1000
    "ct-hu": Domain("CT", 1000.0, None, None, estimate_ct_noise),
    "us-log": Domain("US", 255.0, 0.0, 255.0, estimate_speckle),
}
