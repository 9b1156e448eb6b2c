# SPDX-License-Identifier: Apache-2.0
"""Measure the speckle filter on simulated displays it was not trained on, beside filters that people use.

Peak signal to noise over the whole display, the peak being white.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, median_filter, uniform_filter

from appliance.imaging.denoise_domains import DOMAINS
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Validation
from appliance.ultrasound.speckle import estimate_speckle
from training import validate_denoise
from training.speckle import LOG_RAYLEIGH_DB, Probe, Tissue, draw_probe, draw_tissue, show
from training.validate_denoise import HELD_OUT

Image = NDArray[np.float32]
Run = Callable[..., tuple[Image, ...]]

WHITE = 255.0
NEEDLE = (100, 110)  # a pixel that it runs through
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


def needle_display(angle_deg: float, seed: int = 8) -> Display:
    """Return even tissue, 256 × 256, with a cyst and a needle of one pixel's width, as `needle_profile` expects it."""
    y, x = np.mgrid[:256, :256].astype(np.float32)
    across = (y - NEEDLE[0]) * np.cos(np.radians(angle_deg)) - (x - NEEDLE[1]) * np.sin(np.radians(angle_deg))
    diffuse = np.where(cyst_of(30), np.float32(0.25), np.float32(1))
    probe = Probe(1.3, (2.0, 3.5), range_db=60.0, gain_db=36.0, attenuation_db=5.0, floor_db=-10.0)
    needle = np.where(cyst_of(45), 0, 10 * np.exp(-2 * across**2)).astype(np.float32)
    shown, truth = show(np.random.default_rng(seed), Tissue(diffuse, needle), probe)
    return Display(WHITE * truth, np.rint(WHITE * shown), WHITE * LOG_RAYLEIGH_DB / probe.range_db)


def cyst_of(radius_px: float) -> NDArray[np.bool_]:
    """Return where the cyst of `needle_display` lies, or what is within or about it."""
    y, x = np.ogrid[:256, :256]
    return np.asarray(np.hypot(y - 190, x - 190) < radius_px)


def needle_profile(image: Image, angle_deg: float) -> tuple[float, float]:
    """Return (height in grey levels over the tissue beside it, full width at half of that in pixels) of the needle."""
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    along, across = np.arange(-70, 71)[:, None], np.arange(-15, 15.05, 0.1)
    lines = map_coordinates(image, [NEEDLE[0] + along * s + across * c, NEEDLE[1] + along * c - across * s], order=1)
    profile = lines.mean(axis=0)
    profile = profile - np.median(profile)
    return float(profile.max()), float(np.count_nonzero(profile > profile.max() / 2) * 0.1)


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal to noise, the peak being white."""
    return float(20 * np.log10(WHITE) - 10 * np.log10(np.mean((image - truth) ** 2)))


def non_local_means(shown: Image, level: float) -> Image:
    """Return what scikit-image's fast non-local means makes of it, patches larger than the grains, noise known."""
    return validate_denoise.non_local_means(shown, level, WHITE, patch_px=7, distance_px=11)


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
