# SPDX-License-Identifier: Apache-2.0
"""Measure a denoising model on images it was not trained on, beside scikit-image's non-local means.

Peak signal to noise only where there is body: air is easy, and counting it flatters by 2 to 4 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from skimage.data import shepp_logan_phantom
from skimage.restoration import denoise_nl_means
from skimage.transform import resize

from appliance.imaging.noise import estimate_noise
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Validation
from appliance.mri.phantom import cine_image
from training.dead_leaves import scanned_leaves
from training.dicom_slices import dicom_slices

Image = NDArray[np.float32]
Run = Callable[..., tuple[Image, ...]]

NOISE_PERCENT = (2.0, 5.0, 10.0)  # of the image's maximum
HELD_OUT = 1_000_000  # images, bodies and displays from this number on were never trained on
_BODY = 0.1  # of the image's maximum
_PEER = "non-local means (scikit-image, patch 5, distance 6, h 0.8 sigma, sigma known)"


def rician(rng: np.random.Generator, truth: Image, sigma: float) -> Image:
    """Return the magnitude of `truth` plus complex normal noise of `sigma` in each part."""
    real, imaginary = rng.normal(0, sigma, (2, *truth.shape))
    return np.hypot(truth + real, imaginary).astype(np.float32)


def body_of(truth: Image) -> NDArray[np.bool_]:
    """Return where `truth` is body: everything above a tenth of its maximum."""
    return truth > _BODY * truth.max()


def psnr_db(image: Image, truth: Image, where: NDArray[np.bool_] | slice = slice(None)) -> float:
    """Return the peak signal to noise of `image` where told, in dB; the peak is that of `truth`."""
    return float(20 * np.log10(truth.max()) - 10 * np.log10(np.mean((image - truth)[where] ** 2)))


def body_psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal to noise of `image` where `truth` is body, in dB."""
    return psnr_db(image, truth, body_of(truth))


def phantoms() -> dict[str, list[Image]]:
    """Return noise-free phantoms that no model was trained on, by what they are."""
    leaves = [scanned_leaves(np.random.default_rng([1, HELD_OUT + i]), 256) for i in range(4)]
    return {
        "modified Shepp-Logan phantom": [resize(shepp_logan_phantom(), (256, 256)).astype(np.float32)],
        "cine chest phantom": [cine_image(0)],
        "held-out dead leaves": leaves,
    }


def real_slices(series: Path) -> list[Image]:
    """Return every fourth slice of a series, without the outer ones; their own noise counts as truth."""
    return list(dicom_slices(series)[6:-6:4])


def non_local_means(
    noisy: Image, sigma: float, peak: float | None = None, patch_px: int = 5, distance_px: int = 6
) -> Image:
    """Return what scikit-image's fast non-local means makes of it, the noise known; `peak` None: the largest pixel."""
    peak = peak or float(noisy.max())
    given = {"patch_size": patch_px, "patch_distance": distance_px, "h": 0.8 * sigma / peak, "sigma": sigma / peak}
    return np.asarray(denoise_nl_means(noisy / peak, fast_mode=True, **given) * peak, np.float32)


def validation_sets(series: Path | None) -> Iterator[tuple[str, list[Image]]]:
    """Give (what it is, its noise-free images)."""
    for what, images in phantoms().items():
        yield f"{what}, {len(images)} of 256 x 256", images
    if series is not None:
        slices = real_slices(series)
        yield f"T1 head of {series.name}, {len(slices)} slices, their own noise counted as truth", slices


def validate_denoise(run: Run, series: Path | None, multiple_px: int) -> list[Validation]:
    """Return one row for each kind of image, noise level, and way to know the noise level."""
    rows = []
    for what, truths in validation_sets(series):
        for percent in NOISE_PERCENT:
            figures = np.mean([_compare(run, truth, percent / 100, multiple_px) for truth in truths], axis=0)
            noisy, known, estimated, peer = (round(float(f), 2) for f in figures)
            for how, model in (("known", known), ("estimated", estimated)):
                rows.append(
                    Validation(
                        data=f"{what}; noise level {how}",
                        noise_percent=percent,
                        noisy_db=noisy,
                        model_db=model,
                        other=_PEER,
                        other_db=peer,
                    )
                )
    return rows


def _compare(run: Run, truth: Image, noise: float, multiple_px: int) -> list[float]:
    """Return PSNR of the noisy image, the model with the known level, with the estimated level, and the peer."""
    sigma = noise * float(truth.max())
    noisy = rician(np.random.default_rng(5), truth, sigma)
    scale = float(np.percentile(noisy, 99.5))
    levels = (sigma, estimate_noise(noisy))
    results = [noisy, *(remove_noise(noisy, level, scale, run, multiple_px=multiple_px).image for level in levels)]
    return [body_psnr_db(result, truth) for result in (*results, non_local_means(noisy, sigma))]
