# SPDX-License-Identifier: Apache-2.0
"""Low-dose CT: bodies in HU, and the noise that a scan of them has, made in the projections.

Counts behind the body are Poisson, the electronics add to them, and reconstruction turns that into noise that is
stronger in the middle of the body, runs along the rays that saw most bone, and has the texture of the kernel.
References: Whiting et al. 2006, doi:10.1118/1.2230762 (counts); Hsieh 2009, Computed Tomography, SPIE PM188.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from training.dead_leaves import dead_leaves
from training.parallel_beam import Beam, beam_for, project, reconstruct, reconstructed_variance
from training.phantoms import random_phantom

Image = NDArray[np.float32]
Kind = Callable[[np.random.Generator, int], Image]  # grey values, the brightest tissue near 1

WATER_PER_MM = 0.0193  # linear attenuation at 70 keV, the mean of 120 kV behind a body (NIST XCOM)
ELECTRONIC_COUNTS = 8.0  # standard deviation of the detector's own noise, in photons
_LEAF = (0.0, 0.06, 0.10, 0.20, 0.25, 0.80, 0.88, 1.2)  # grey value of a dead leaf …
_TISSUE_HU = (-1000.0, -900.0, -130.0, -80.0, 0.0, 80.0, 250.0, 1800.0)  # … and what it stands for


@dataclass(frozen=True)
class LowDose:
    """A scan without and with noise, in HU, and the standard deviation of that noise in each pixel."""

    truth: Image
    noise: Image
    level: Image


def to_hu(attenuation_per_px: Image, pixel_mm: float) -> Image:
    """Give Hounsfield units (PS3.3 C.11.1) of linear attenuation."""
    return np.asarray(1000 * (attenuation_per_px / (WATER_PER_MM * pixel_mm) - 1), np.float32)


def to_attenuation(hu: Image, pixel_mm: float) -> Image:
    """Give linear attenuation per pixel, not below that of nothing."""
    return np.asarray(np.maximum(hu / 1000 + 1, 0) * WATER_PER_MM * pixel_mm, np.float32)


def hu_phantom(rng: np.random.Generator, size: int, kind: Kind = dead_leaves) -> Image:
    """Return a body of air, lung, fat, soft tissue and bone, (size, size), HU; half of them end within the image."""
    leaves = kind(rng, size)
    shift = rng.uniform(-0.15, 0.15)  # more bone, or more air
    body = np.interp(leaves + shift * (leaves > 0), _LEAF, _TISSUE_HU)
    contrast = rng.uniform(0.2, 1.2)  # soft tissues differ by 20 to 100 HU
    body = np.where((body > 0) & (body < 80), 20 + contrast * (body - 20), body)
    body = np.where(body > 250, 250 + rng.uniform(0.3, 1.0) * (body - 250), body)
    return np.asarray(gaussian_filter(body, rng.uniform(0.3, 1.0)), np.float32)


def draw_beam(rng: np.random.Generator, size: int) -> Beam:
    """Return a detector finer or coarser than the pixels, and a kernel between smooth and sharp."""
    return beam_for(size, 360, rng.uniform(0.7, 1.8), rng.uniform(0.7, 1.0), rng.uniform(0.2, 1.0))


def scan_low_dose(
    rng: np.random.Generator, truth: Image, beam: Beam, pixel_mm: float, level_hu: float, n_scans: int = 1
) -> list[LowDose]:
    """Return scans of `truth` (y, x) in HU with the dose that makes the noise in the body `level_hu` at the median.

    Only the noise goes through the reconstruction, after the logarithm: truth is the image itself.
    """
    size = len(truth)
    integrals = project(to_attenuation(truth, pixel_mm), beam)
    body = truth > -500
    unit = np.sqrt(reconstructed_variance(np.exp(integrals), beam, size)) * (1000 / (WATER_PER_MM * pixel_mm))
    photons = float(np.median(unit[body]) / level_hu) ** 2 if body.any() else float(unit.mean() / level_hu) ** 2
    expected = photons * np.exp(-integrals.astype(np.float64))
    variance = (expected + ELECTRONIC_COUNTS**2) / expected**2  # of the logarithm, to first order
    level = np.sqrt(reconstructed_variance(variance.astype(np.float32), beam, size))
    scans = []
    for _ in range(n_scans):
        counts = rng.poisson(expected) + rng.normal(0, ELECTRONIC_COUNTS, expected.shape)
        wrong = -np.log(np.maximum(counts, 1) / expected)
        noise = reconstruct(wrong.astype(np.float32), beam, size)
        scans.append(LowDose(truth, noise, level))
    per_hu = np.float32(1000 / (WATER_PER_MM * pixel_mm))
    return [replace(scan, noise=scan.noise * per_hu, level=scan.level * per_hu) for scan in scans]


def draw_scans(rng: np.random.Generator, number: int, level_hu: float, n_scans: int = 1) -> list[LowDose]:
    """Return scans of one body, 256 × 256, with one of the many kernels and pixel sizes; every third body is even."""
    truth = hu_phantom(rng, 256, random_phantom if number % 3 == 0 else dead_leaves)
    return scan_low_dose(rng, truth, draw_beam(rng, 256), rng.uniform(0.5, 1.4), level_hu, n_scans)
