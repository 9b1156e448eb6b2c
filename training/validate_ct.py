# SPDX-License-Identifier: Apache-2.0
"""Measure the CT denoiser in HU, on bodies it was not trained on and on real slices with noise made in projections.

Peak signal to noise in the body only, the peak being 1000 HU, from air to water: 40 dB are 10 HU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from appliance.ct.noise import estimate_ct_noise
from appliance.imaging.denoise_domains import DOMAINS
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Validation
from training import validate_denoise
from training.dicom_slices import dicom_slices
from training.low_dose_ct import LowDose, draw_scans, scan_low_dose
from training.parallel_beam import beam_for
from training.validate_denoise import HELD_OUT

Image = NDArray[np.float32]
Run = Callable[..., tuple[Image, ...]]

LEVELS_HU = (10.0, 20.0, 40.0)
PEAK_HU = 1000.0
_CT = DOMAINS["ct-hu"]
_PEER = "non-local means (scikit-image, patch 5, distance 6, h 0.8 sigma, sigma known)"


def clean_hu(noisy: Image, level: Image | float, run: Run, multiple_px: int, strength: float = 1.0) -> Image:
    """Return what the stage makes of a CT image in HU."""
    given = {"strength": strength, "multiple_px": multiple_px, "domain": _CT}
    return np.asarray(remove_noise(noisy, level, _CT.first_scale(noisy), run, None, **given).image)


def body_of(truth: Image) -> NDArray[np.bool_]:
    """Return where there is tissue, lung excluded."""
    return truth > -500


def rmse_hu(image: Image, truth: Image) -> float:
    """Return the root of the mean squared error in the body, HU."""
    return float(np.sqrt(np.mean((image - truth)[body_of(truth)] ** 2)))


def psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal to noise in the body, the peak being PEAK_HU."""
    return float(20 * np.log10(PEAK_HU / rmse_hu(image, truth)))


def known_level(scan: LowDose) -> float:
    """Return the root mean square of the noise in the body: what a peer that takes one number is told."""
    return float(np.sqrt(np.mean(scan.level[body_of(scan.truth)] ** 2)))


def simulated(level_hu: float, n: int = 6) -> list[LowDose]:
    """Return held-out bodies at one level, 256 × 256."""
    numbers = range(HELD_OUT, HELD_OUT + n)
    return [scan for n in numbers for scan in draw_scans(np.random.default_rng([2, n]), n, level_hu)]


def real(series: Path, level_hu: float) -> list[LowDose]:
    """Return every fifth slice of a series with noise added to its own, which counts as truth; pixels of 0.49 mm."""
    slices = dicom_slices(series)[3:-3:5]
    scans = []
    for i, truth in enumerate(slices):
        scans += scan_low_dose(
            np.random.default_rng([4, i]), truth, beam_for(len(truth), 720, 1.3, 1.0, 1.0), 0.49, level_hu
        )
    return scans


def non_local_means(noisy: Image, sigma: float) -> Image:
    """Return what scikit-image's fast non-local means makes of it, the noise known."""
    return validate_denoise.non_local_means(noisy, sigma, PEAK_HU)


def validation_sets(series: Path | None, level_hu: float) -> Iterator[tuple[str, list[LowDose]]]:
    """Give (what it is, its scans)."""
    scans = simulated(level_hu)
    yield f"held-out simulated bodies, {len(scans)} of 256 x 256", scans
    if series is not None:
        yield real_set(series, level_hu)


def real_set(series: Path, level_hu: float) -> tuple[str, list[LowDose]]:
    """Return (what it is, its scans) of real slices."""
    scans = real(series, level_hu)
    return f"CT head of {series.name}, {len(scans)} slices, their own noise counted as truth", scans


def validate_ct(run: Run, series: Path | None, multiple_px: int) -> list[Validation]:
    """Return two rows for each noise level and kind of image."""
    return [
        row
        for level_hu in LEVELS_HU
        for what, scans in validation_sets(series, level_hu)
        for row in validate_set(run, what, scans, level_hu, multiple_px)
    ]


def validate_set(run: Run, what: str, scans: list[LowDose], level_hu: float, multiple_px: int) -> list[Validation]:
    """Return one row for each way to know the noise level: a map, or an estimate."""
    noisy, known, estimated, peer = np.mean([_compare(run, scan, multiple_px) for scan in scans], axis=0).tolist()
    return [
        Validation(
            data=f"{what}; peak 1000 HU; noise level {how}",
            noise_percent=100 * level_hu / PEAK_HU,
            noisy_db=round(noisy, 2),
            model_db=round(model, 2),
            other=_PEER,
            other_db=round(peer, 2),
        )
        for how, model in (("map known", known), ("estimated", estimated))
    ]


def _compare(run: Run, scan: LowDose, multiple_px: int) -> list[float]:
    """Return PSNR of the noisy image, the model with the known map, with the estimated level, and the peer."""
    noisy = scan.truth + scan.noise
    cleaned = [clean_hu(noisy, level, run, multiple_px) for level in (scan.level, estimate_ct_noise(noisy))]
    return [psnr_db(image, scan.truth) for image in (noisy, *cleaned, non_local_means(noisy, known_level(scan)))]
