# SPDX-License-Identifier: Apache-2.0
"""B-mode images with speckle, and what they would show without it.

A tissue is a field of random scatterers seen through a pulse that widens with depth; bone, needles and walls reflect
coherently. The display shows the logarithm of the envelope. Without speckle it would show the expectation of that
logarithm: no brighter or darker than the image is on average.
References: Wagner et al. 1983, doi:10.1109/T-SU.1983.31404 (speckle); Burckhardt 1978, doi:10.1109/T-SU.1978.30978.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.special import exp1

from training.dead_leaves import dead_leaves

Image = NDArray[np.float32]

LOG_RAYLEIGH_DB = 10 / np.log(10) * np.pi / 6**0.5  # 5.57: standard deviation of the level of fully developed speckle
_ZONES = 4  # depths with a width of their own, blended linearly


@dataclass(frozen=True)
class Probe:
    """How a display came about. Pixels are those of the display; depth is y."""

    axial_px: float  # standard deviations of the pulse's amplitude …
    lateral_px: tuple[float, float]  # … at the top and at the bottom
    range_db: float  # from black to white
    gain_db: float  # level of echo amplitude 1, over black
    attenuation_db: float  # lost from top to bottom, after the machine's own compensation
    floor_db: float  # level of the electronics' noise, over black


@dataclass(frozen=True)
class Tissue:
    """Amplitude of the echoes: `diffuse` of unresolved scatterers, `coherent` of surfaces; (y, x)."""

    diffuse: Image
    coherent: Image


def draw_probe(rng: np.random.Generator) -> Probe:
    """Return one of the many machines and presets."""
    top = rng.uniform(1.0, 3.0)
    range_db = rng.uniform(45, 75)
    return Probe(
        axial_px=rng.uniform(0.8, 2.0),
        lateral_px=(top, top * rng.uniform(1.0, 2.2)),
        range_db=range_db,
        gain_db=range_db * rng.uniform(0.55, 0.95),
        attenuation_db=rng.uniform(0, 30),
        floor_db=rng.uniform(-20, 5),
    )


def draw_tissue(rng: np.random.Generator, size: int) -> Tissue:
    """Return layers, cysts, vessels and shadows, with surfaces and, in half of them, needles."""
    contrast_db = rng.uniform(10, 40)
    diffuse = 10 ** (contrast_db / 20 * (dead_leaves(rng, size) - 0.7))
    edges = np.abs(np.diff(np.log(diffuse), axis=0, prepend=0))  # only what faces the probe reflects
    coherent = diffuse * np.minimum(edges, 1) * rng.uniform(0, 6) * (rng.uniform() < 0.5)
    coherent[0] = 0
    for _ in range(rng.integers(0, 3)):
        coherent = np.maximum(coherent, _needle(rng, size) * 10 ** (rng.uniform(0, 30) / 20))
    if rng.uniform() < 0.3:
        shadow = 10 ** (-_shadow(rng, size) * rng.uniform(10, 60) / 20)
        diffuse, coherent = diffuse * shadow, coherent * shadow
    return Tissue(diffuse.astype(np.float32), coherent.astype(np.float32))


def _needle(rng: np.random.Generator, size: int) -> Image:
    """Return 1 on a straight line of some length, softened to a pixel's width, 0 elsewhere."""
    y, x = np.mgrid[:size, :size] - rng.uniform(0.2, 0.8, (2, 1, 1)) * size
    angle = rng.uniform(-1.2, 1.2)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    ends = np.clip(rng.uniform(0.05, 0.5) * size - np.abs(along), 0, 1)
    return np.asarray(ends * np.exp(-2 * across**2), np.float32)


def _shadow(rng: np.random.Generator, size: int) -> Image:
    """Return 1 below some surface, 0 above and beside it."""
    y, x = np.ogrid[:size, :size]
    top, centre, width = rng.uniform(0.1, 0.8) * size, rng.uniform(0, size), rng.uniform(0.05, 0.3) * size
    inside = (y > top + rng.uniform(-0.3, 0.3) * (x - centre)) & (np.abs(x - centre) < width)
    return gaussian_filter(inside.astype(np.float32), 2)


def _through(probe: Probe, field: Image) -> Image:
    """Return `field` (real or complex) convolved with the pulse, the lateral width growing with depth."""
    size = len(field)
    axial = gaussian_filter1d(field, probe.axial_px, axis=0)
    depth = np.linspace(0, _ZONES - 1, size)[:, None]
    result = np.zeros_like(axial)
    for zone, width in enumerate(np.linspace(*probe.lateral_px, _ZONES)):
        share = np.clip(1 - np.abs(depth - zone), 0, None)
        result += (share * gaussian_filter1d(axial, width, axis=1)).astype(np.float32)
    return result


def _diffuse_power(probe: Probe, diffuse: Image) -> Image:
    """Return the expected power of white scatterers of unit variance times `diffuse`, through the pulse."""
    squared = Probe(
        probe.axial_px / 2**0.5, (probe.lateral_px[0] / 2**0.5, probe.lateral_px[1] / 2**0.5), 1, 0, 0, 0
    )  # the square of a Gaussian is a narrower one
    return _through(squared, diffuse**2)


def show(rng: np.random.Generator, tissue: Tissue, probe: Probe) -> tuple[Image, Image]:
    """Return (what the display shows, what it would show without speckle), both (y, x), 0 black to 1 white."""
    size = len(tissue.diffuse)
    real, imaginary = rng.normal(0, 0.5**0.5, (2, size, size)).astype(np.float32)
    depth_widths = np.linspace(*probe.lateral_px, size)[:, None]
    spread = np.sqrt(4 * np.pi * probe.axial_px * depth_widths)  # makes white scatterers of amplitude 1 an echo of 1
    echo = _through(probe, tissue.diffuse * real) + 1j * _through(probe, tissue.diffuse * imaginary)
    surface = _through(probe, tissue.coherent) * np.sqrt(2 * np.pi) * probe.axial_px  # a line of 1 echoes 1
    loss = 10 ** (-probe.attenuation_db / 20 * np.linspace(0, 1, size)[:, None])
    floor = 10 ** ((probe.floor_db - probe.gain_db) / 20)
    thermal = rng.normal(0, floor * 0.5**0.5, (2, size, size))
    envelope = np.abs(loss * (spread * echo + surface) + thermal[0] + 1j * thermal[1])
    diffuse = loss**2 * _diffuse_power(probe, tissue.diffuse) + floor**2
    coherent = (loss * surface) ** 2
    return _display(2 * np.log(envelope + 1e-9), probe), _display(_expected_log_power(coherent, diffuse), probe)


def _expected_log_power(coherent: Image, diffuse: Image) -> Image:
    """Return E[ln(power)] of a Rician envelope; -0.577 + ln(diffuse) where nothing is coherent."""
    ratio = np.maximum(coherent / diffuse, 1e-6)
    return np.asarray(np.log(np.maximum(coherent, 1e-6 * diffuse)) + exp1(ratio))


def _display(log_power: Image, probe: Probe) -> Image:
    level_db = 10 / np.log(10) * log_power + probe.gain_db
    return np.asarray(np.clip(level_db / probe.range_db, 0, 1), np.float32)
