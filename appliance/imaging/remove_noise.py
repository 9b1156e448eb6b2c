# SPDX-License-Identifier: Apache-2.0
"""Take the noise that a model names out of an image, and never more than was there.

Reference: Zhang, Zuo, Zhang 2018 (FFDNet), doi:10.1109/TIP.2018.2839891.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from appliance.arrays import namespace
from appliance.frames import Array
from appliance.imaging.denoise_domains import DOMAINS, Domain

MOST_SIGMA = 4.0  # a change beyond this is not noise


class Cleaned(NamedTuple):
    """The image, and the model's memory for the next frame of this place (None: it has none)."""

    image: Array
    memory: Array | None


def remove_noise(
    image: Array,
    noise_level: Array | float,
    scale: float,
    run: Callable[..., tuple[Array, ...]],
    memory: Array | None = None,
    strength: float = 1.0,
    multiple_px: int = 1,
    domain: Domain = DOMAINS["mr-magnitude"],
) -> Cleaned:
    """Return `image` less the noise that the model `run` names, as new float32 array on the same device.

    At most four standard deviations are taken away or added: where there is no noise nothing changes, and no
    structure can appear that is larger than the noise was. Nor does a pixel leave the range of its `domain`.

    Parameters
    ----------
    image : float32, (y, x), host or device; not modified.
    noise_level : standard deviation in image units, one or (y, x); negative counts as 0.
    scale : brings the image to about 1.
    run : takes (1, 2, y, x) and, if the model has one, its memory; gives noise (1, 1, y, x) and the next memory.
    memory : of the frame before at this place, for the padded size; zeros at first.
    strength : part of the noise to take out, 0 to 1.
    multiple_px : sides that the model takes are multiples of this; others are mirrored at the end.
    domain : what kind of image it is: a magnitude cannot go below zero, Hounsfield units can.
    """
    xp = namespace(image)
    level = xp.maximum(xp.asarray(noise_level, dtype=xp.float32), 0)
    both = xp.stack([image, xp.broadcast_to(level, image.shape)]) / xp.float32(scale)
    missing = [-n % multiple_px for n in image.shape]
    if any(missing):
        both = xp.pad(both, [(0, 0), *((0, n) for n in missing)], mode="reflect")
    noise, *rest = run(both[None]) if memory is None else run(both[None], memory)
    noise = noise[0, 0, : image.shape[0], : image.shape[1]] * xp.float32(scale)
    result = image - xp.float32(strength) * domain.limited(image, noise, MOST_SIGMA * level)
    return Cleaned(result, rest[0] if rest else None)
