# SPDX-License-Identifier: Apache-2.0
"""Measure the speckle filter on simulated displays it was not trained on, beside filters that people use.

Peak signal to noise over the whole display, the peak being white.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter, uniform_filter
from skimage.restoration import denoise_nl_means

from appliance.imaging.denoise_domains import DOMAINS
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Validation
from appliance.ultrasound.speckle import estimate_speckle
from training.speckle import LOG_RAYLEIGH_DB, draw_probe, draw_tissue, show

Image = NDArray[np.float32]
Run = Callable[..., tuple[Image, ...]]

WHITE = 255.0
HELD_OUT = 1_000_000  # displays from this number on were never trained on
_US = DOMAINS["us-log"]
_PEER = "non-local means (scikit-image, patch 7, distance 11, h 0.8 sigma, sigma known)"


class Display(NamedTuple):
    """One simulated display, grey levels 0 to 255, and the standard deviation of its speckle."""

    truth: Image
    shown: Image
    level: float


def clean_display(shown: Image, level: float, run: Run, multiple_px: int, strength: float = 1.0) -> Image:
    """Return what the stage makes of a B-mode image, 0 to 255."""
    given = {"strength": strength, "multiple_px": multiple_px, "domain": _US}
    return np.asarray(remove_noise(shown, level, WHITE, run, None, **given).image)


def displays(n: int = 12) -> list[Display]:
    """Return held-out displays, 256 × 256, whole grey levels as displays have them."""
    made = []
    for i in range(n):
        rng = np.random.default_rng([3, HELD_OUT + i])
        probe = draw_probe(rng)
        shown, truth = show(rng, draw_tissue(rng, 256), probe)
        made.append(Display(WHITE * truth, np.rint(WHITE * shown), WHITE * LOG_RAYLEIGH_DB / probe.range_db))
    return made


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal to noise, the peak being white."""
    return float(20 * np.log10(WHITE) - 10 * np.log10(np.mean((image - truth) ** 2)))


def non_local_means(shown: Image, level: float) -> Image:
    """Return what scikit-image's fast non-local means makes of it, patches larger than the grains, noise known."""
    given = {"patch_size": 7, "patch_distance": 11, "h": 0.8 * level / WHITE, "sigma": level / WHITE}
    return np.asarray(denoise_nl_means(shown / WHITE, fast_mode=True, **given) * WHITE, np.float32)


def median(shown: Image, _level: float) -> Image:
    """Return the median of 7 × 7 pixels."""
    return np.asarray(median_filter(shown, 7))


def lee(shown: Image, level: float) -> Image:
    """Return the local statistics filter in the logarithm, 9 × 9 pixels (Lee 1980, doi:10.1109/TPAMI.1980.4766994)."""
    mean = uniform_filter(shown, 9)
    variance = np.maximum(uniform_filter(shown**2, 9) - mean**2, 1e-6)
    return np.asarray(mean + np.clip(1 - level**2 / variance, 0, 1) * (shown - mean), np.float32)


PEERS: dict[str, Callable[[Image, float], Image]] = {
    "non-local means": non_local_means,
    "median 7 x 7": median,
    "Lee 9 x 9": lee,
}


def validate_us(run: Run, multiple_px: int) -> list[Validation]:
    """Return one row for each way to know the level of the speckle."""
    made = displays()
    noisy = [psnr_db(one.shown, one.truth) for one in made]
    known = [psnr_db(clean_display(one.shown, one.level, run, multiple_px), one.truth) for one in made]
    estimated = [
        psnr_db(clean_display(one.shown, estimate_speckle(one.shown), run, multiple_px), one.truth) for one in made
    ]
    peer = [psnr_db(non_local_means(one.shown, one.level), one.truth) for one in made]
    return [
        Validation(
            data=f"held-out simulated displays, {len(made)} of 256 x 256; level of the speckle {how}",
            noise_percent=round(float(np.mean([100 * one.level / WHITE for one in made])), 2),
            noisy_db=round(float(np.mean(noisy)), 2),
            model_db=round(float(np.mean(model)), 2),
            other=_PEER,
            other_db=round(float(np.mean(peer)), 2),
        )
        for how, model in (("known", known), ("estimated", estimated))
    ]
