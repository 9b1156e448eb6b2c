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
from appliance.inference.card import Validation
from operators.stages.denoise import remove_noise
from training.dicom_slices import dicom_slices

Image = NDArray[np.float32]

NOISE_PERCENT = (2.0, 5.0, 10.0)  # of the image's maximum
_BODY = 0.1  # of the image's maximum
_PEER = "non-local means (scikit-image, patch 5, distance 6, h 0.8 sigma, sigma known)"


def rician(rng: np.random.Generator, truth: Image, sigma: float) -> Image:
    """Return the magnitude of `truth` plus complex normal noise of `sigma` in each part."""
    real, imaginary = rng.normal(0, sigma, (2, *truth.shape))
    return np.hypot(truth + real, imaginary).astype(np.float32)


def body_psnr_db(image: Image, truth: Image) -> float:
    """Return the peak signal to noise of `image` where `truth` is body, in dB."""
    body = truth > _BODY * truth.max()
    return float(20 * np.log10(truth.max()) - 10 * np.log10(np.mean((image - truth)[body] ** 2)))


def validation_sets(series: Path | None) -> Iterator[tuple[str, list[Image]]]:
    """Give (what it is, its noise-free images)."""
    yield "modified Shepp-Logan phantom 256 x 256", [resize(shepp_logan_phantom(), (256, 256)).astype(np.float32)]
    if series is not None:
        slices = list(dicom_slices(series)[6:-6:4])
        yield f"T1 head of {series.name}, {len(slices)} slices, their own noise counted as truth", slices


def validate_denoise(run: Callable[[Image], tuple[Image, ...]], series: Path | None) -> list[Validation]:
    """Return one row for each kind of image, noise level, and way to know the noise level."""
    rows = []
    for what, truths in validation_sets(series):
        for percent in NOISE_PERCENT:
            figures = np.mean([_compare(run, truth, percent / 100) for truth in truths], axis=0)
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


def _compare(run: Callable[[Image], tuple[Image, ...]], truth: Image, noise: float) -> list[float]:
    """Return PSNR of the noisy image, the model with the known level, with the estimated level, and the peer."""
    peak = float(truth.max())
    sigma = noise * peak
    noisy = rician(np.random.default_rng(5), truth, sigma)
    scale = float(np.percentile(noisy, 99.5))
    results = [noisy, *(remove_noise(noisy, level, scale, run) for level in (sigma, estimate_noise(noisy)))]
    fast = denoise_nl_means(noisy / peak, patch_size=5, patch_distance=6, h=0.8 * noise, sigma=noise, fast_mode=True)
    return [body_psnr_db(result, truth) for result in (*results, fast * peak)]
