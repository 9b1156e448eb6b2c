# SPDX-License-Identifier: Apache-2.0
"""CT slices with planted faults of the acquisition, made in the projections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.low_dose_ct import ELECTRONIC_COUNTS, WATER_PER_MM, to_attenuation
from training.parallel_beam import Beam, Sinogram, project, reconstruct, reconstructed_variance

Image = NDArray[np.float32]

KINDS = ("rings", "streaks", "missing_views", "tube_arcing")
OWN_NOISE_HU = 5.0  # of a head on a scanner of today
BODY_HU = -500.0


class Planted(NamedTuple):
    """The slice with the fault, HU, and where it is: a radius in pixels or an angle in degrees."""

    image: Image
    where: float
    added: Image  # by the fault, before the slice was stored


class Scanned(NamedTuple):
    """A slice whose projections are known."""

    image: Image  # HU, with its noise, as stored
    integrals: Sinogram
    noise: Sinogram  # added to them
    beam: Beam
    photons: float
    pixel_mm: float


def scan(rng: np.random.Generator, truth: Image, beam: Beam, pixel_mm: float, noise_hu: float) -> Scanned:
    """Return `truth` (y, x) in HU as a scan shows it whose noise in the body is `noise_hu` at the median.

    0: as it is, with the noise that it has, and faults as strong as at a dose of OWN_NOISE_HU.
    """
    integrals = project(to_attenuation(truth, pixel_mm), beam)
    photons = _photons(truth, integrals, beam, pixel_mm, noise_hu or OWN_NOISE_HU)
    noise = np.zeros_like(integrals)
    if noise_hu:
        noise = _wrong(rng, photons * np.exp(-integrals.astype(np.float64)))
    image = stored(truth + _in_hu(noise, beam, pixel_mm, len(truth)))
    return Scanned(image, integrals, noise, beam, photons, pixel_mm)


def stored(image: Image) -> Image:
    """Return `image` as scanners store it: whole numbers from -1024 to 3071 HU."""
    return np.rint(image).clip(-1024, 3071).astype(np.float32)


def _photons(truth: Image, integrals: Sinogram, beam: Beam, pixel_mm: float, noise_hu: float) -> float:
    """Return how many photons in each ray make that noise in the body."""
    unit = np.sqrt(reconstructed_variance(np.exp(integrals), beam, len(truth))) * (1000 / (WATER_PER_MM * pixel_mm))
    body = truth > BODY_HU
    return float(np.median(unit[body] if body.any() else unit) / noise_hu) ** 2


def plant(rng: np.random.Generator, kind: str, scanned: Scanned) -> Planted:
    """Return `scanned` with a fault of `kind` (one of KINDS), of a size and at a place drawn at random."""
    change = np.zeros_like(scanned.integrals)
    where = {"rings": _ring, "streaks": _starve, "missing_views": _miss, "tube_arcing": _arc}[kind](
        rng, scanned, change
    )
    added = _in_hu(change, scanned.beam, scanned.pixel_mm, len(scanned.image))
    return Planted(stored(scanned.image + added), where, added)


def noise_images(rng: np.random.Generator, scanned: Scanned, n: int) -> Image:
    """Return the noise of n more scans of the same slice, (n, y, x), HU."""
    expected = scanned.photons * np.exp(-scanned.integrals.astype(np.float64))
    size = len(scanned.image)
    return np.stack([_in_hu(_wrong(rng, expected), scanned.beam, scanned.pixel_mm, size) for _ in range(n)])


def _in_hu(sinogram: Sinogram, beam: Beam, pixel_mm: float, size: int) -> Image:
    return reconstruct(sinogram, beam, size) * np.float32(1000 / (WATER_PER_MM * pixel_mm))


def _wrong(rng: np.random.Generator, expected: NDArray[np.float64]) -> Sinogram:
    """Return the error of the logarithm of counts where `expected` ones come."""
    counts = rng.poisson(expected) + rng.normal(0, ELECTRONIC_COUNTS, expected.shape)
    return (-np.log(np.maximum(counts, 1) / np.maximum(expected, 1e-3))).astype(np.float32)


def _ring(rng: np.random.Generator, scanned: Scanned, change: Sinogram) -> float:
    """A channel whose gain is off by 1 to 5 %. A turn of 360° sees its radius from both sides."""
    n_bins, size = scanned.beam.n_bins, len(scanned.image)
    radius = rng.uniform(0.1, 0.35) * size
    channel = round((n_bins - 1) / 2 + radius / scanned.beam.bin_px)
    error = rng.choice([-1, 1]) * rng.uniform(0.01, 0.05)
    change[:, [channel, n_bins - 1 - channel]] = error
    return float((channel - (n_bins - 1) / 2) * scanned.beam.bin_px)


def _starve(rng: np.random.Generator, scanned: Scanned, change: Sinogram) -> float:
    """Arms beside the body: over 20 to 40 degrees, 4 to 6 lengths of attenuation more, corrected but for the noise."""
    centre, width = rng.uniform(0, 180), rng.uniform(10, 20)
    away = (np.degrees(scanned.beam.angles) - centre + 90) % 180 - 90
    arms = rng.uniform(4, 6) * np.exp(-0.5 * (away / width) ** 2)
    change += _wrong(rng, 3 * scanned.photons * np.exp(-scanned.integrals.astype(np.float64) - arms[:, None]))
    return float(centre)


def _miss(rng: np.random.Generator, scanned: Scanned, change: Sinogram) -> float:
    """1.5 to 6 degrees of views that never came, and count as nothing."""
    first, n = _some_views(rng, scanned, 1.5, 6)
    change[first : first + n] = -(scanned.integrals + scanned.noise)[first : first + n]
    return (first + (n - 1) / 2) * 180 / scanned.beam.n_views


def _arc(rng: np.random.Generator, scanned: Scanned, change: Sinogram) -> float:
    """The tube gives 0.5 to 5 % of its photons over up to 1 degree; the machine corrects all but the noise."""
    first, n = _some_views(rng, scanned, 0, 1)
    part = np.exp(rng.uniform(*np.log([0.005, 0.05])))
    expected = part * scanned.photons * np.exp(-scanned.integrals[first : first + n].astype(np.float64))
    change[first : first + n] = _wrong(rng, expected)
    return (first + (n - 1) / 2) * 180 / scanned.beam.n_views


def _some_views(rng: np.random.Generator, scanned: Scanned, least: float, most: float) -> tuple[int, int]:
    """Return the first of some neighbouring views and how many, between `least` and `most` degrees."""
    n_views = scanned.beam.n_views
    n = max(1, round(rng.uniform(least, most) / 180 * n_views))
    return int(rng.integers(0, n_views - n)), n
