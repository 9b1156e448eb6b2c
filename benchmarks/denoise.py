# SPDX-License-Identifier: Apache-2.0
"""The MR denoisers beside BM3D and non-local means on the same images in the same run: quality first, then speed.

    python benchmarks/denoise.py [--json FILE] [--pictures FOLDER] [--speed-only]

BM3D is the package `bm3d`, free for non-commercial use and for that reason in none of our requirements:
`pip install bm3d`. It is told the noise level. It assumes normal noise, so where that is better its result gets the
bias correction for Rician noise, sqrt(m^2 - sigma^2): the better of the two, judged by the truth, counts. The models
are told the level too ("known") or estimate it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bm3d import bm3d
from numpy.typing import NDArray
from scipy.ndimage import label
from skimage.metrics import structural_similarity

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from appliance.imaging.noise import estimate_noise
from appliance.imaging.remove_noise import remove_noise
from appliance.inference.card import Card, Model, read_model, shipped_models
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.inference.openvino import OpenVino, has_native_bf16
from appliance.mri.phantom import cine_image
from training.validate_denoise import body_of, non_local_means, phantoms, psnr_db, real_slices, rician

Image = NDArray[np.float32]
Denoise = Callable[[Image, float], Image]

SERIES = ROOT / "../shared/data/series/mr_t1_siemens_HFS.tar.xz"
NOISE_PERCENT = (2, 5, 10)  # of the maximum
CINE_FRAMES, CINE_SETTLED, CINE_NOISE = 48, 6, 0.05
THREADS = 2


class Ours:
    """A shipped model on one backend."""

    def __init__(self, name: str, precision: str = "f32", backend: Any = None) -> None:
        self.model: Model = read_model(name, shipped_models())
        self.card: Card = self.model.card
        chosen = backend or OpenVino(THREADS)
        self.session = chosen.load(self.model.onnx, self.card.signature, precision)
        self.memory: Image | None = None
        self.scale = 0.0

    def forget(self, image: Image) -> None:
        """Start a new scan of images like this one: its first frame decides the scale, as in the stage."""
        self.scale = 0.0
        if self.card.memory:
            self.memory = np.zeros(self.card.memory.shape(*image.shape), np.float32)

    def __call__(self, noisy: Image, sigma: float) -> Image:
        if self.memory is None or not self.scale:
            self.scale = float(np.percentile(noisy, 99.5))
        multiple = self.card.input.multiple_px
        cleaned = remove_noise(noisy, sigma, self.scale, self.session.run, self.memory, multiple_px=multiple)
        self.memory = cleaned.memory
        return np.asarray(cleaned.image)


def bm3d_candidates(noisy: Image, sigma: float) -> list[Image]:
    """Return BM3D's result, and the same with Rician bias taken out."""
    peak = float(noisy.max())
    plain = np.asarray(bm3d(noisy / peak, sigma / peak) * peak, np.float32)
    return [plain, np.sqrt(np.maximum(plain**2 - sigma**2, 0))]


def best(candidates: list[Image], truth: Image) -> Image:
    """Return the candidate nearest to the truth in the body."""
    return max(candidates, key=lambda image: psnr_db(image, truth, body_of(truth)))


def measures(image: Image, truth: Image) -> dict[str, float]:
    """Return PSNR in the body and over the whole image, and SSIM in the body."""
    _, ssim = structural_similarity(image, truth, data_range=float(truth.max()), full=True)
    body = body_of(truth)
    return {
        "body_db": psnr_db(image, truth, body),
        "whole_db": psnr_db(image, truth),
        "body_ssim": float(ssim[body].mean()),
    }


def quality(ours: Denoise, truths: list[Image], percent: float) -> dict[str, dict[str, float]]:
    """Return the mean measures of each method over the images at one noise level."""
    rows: dict[str, list[dict[str, float]]] = {}
    for number, truth in enumerate(truths):
        sigma = percent / 100 * float(truth.max())
        noisy = rician(np.random.default_rng([11, number]), truth, sigma)
        results = {
            "noisy": noisy,
            "ours, level known": ours(noisy, sigma),
            "ours, level estimated": ours(noisy, estimate_noise(noisy)),
            "BM3D": best(bm3d_candidates(noisy, sigma), truth),
            "NLM": non_local_means(noisy, sigma),
        }
        for method, image in results.items():
            rows.setdefault(method, []).append(measures(image, truth))
    return {
        method: {key: round(statistics.fmean(row[key] for row in found), 4) for key in found[0]}
        for method, found in rows.items()
    }


def lesion_image(diameter_px: float, contrast: float) -> tuple[Image, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return tissue of 1 with 36 disks of `contrast`, where their cores are, and where the tissue around them is."""
    y, x = np.mgrid[0:192, 0:192].astype(np.float32)
    distance = np.hypot((y + 0.37) % 32 - 16, (x + 0.21) % 32 - 16)
    disk = np.clip(diameter_px / 2 + 0.5 - distance, 0, 1)
    core = distance <= max(diameter_px / 2 - 0.5, 0.75)
    around = (distance > diameter_px / 2 + 2) & (distance < diameter_px / 2 + 6)
    return (1 + contrast * disk).astype(np.float32), core, around


def contrast_of(image: Image, core: NDArray[np.bool_], around: NDArray[np.bool_]) -> float:
    """Return how much brighter the disks are than the tissue around them."""
    return float(image[core].mean() - image[around].mean())


def lesions(ours: Denoise, sigma: float = 0.05, repeats: int = 3) -> list[dict[str, float]]:
    """Return how much of a small disk's contrast each method keeps, by size and contrast to noise."""
    rows = []
    for diameter, cnr in itertools.product((2, 3, 4, 6), (1, 2, 3, 4)):
        truth, core, around = lesion_image(diameter, cnr * sigma)
        kept: dict[str, list[float]] = {"noisy": [], "ours": [], "BM3D": []}
        for repeat in range(repeats):
            noisy = rician(np.random.default_rng([12, repeat]), truth, sigma)
            images = {"noisy": noisy, "ours": ours(noisy, sigma), "BM3D": best(bm3d_candidates(noisy, sigma), truth)}
            for method, image in images.items():
                kept[method].append(contrast_of(image, core, around) / contrast_of(truth, core, around))
        row = {method: round(100 * statistics.fmean(found), 1) for method, found in kept.items()}
        rows.append({"diameter_px": diameter, "contrast_to_noise": cnr, **row})
    return rows


def false_structures(method: Callable[[Image, float], Image], level: float, sigma: float = 0.05) -> dict[str, float]:
    """Return what stands out of a flat image after denoising: spots over half a standard deviation of the noise."""
    noisy = rician(np.random.default_rng(13), np.full((256, 256), level, np.float32), sigma)
    result = method(noisy, sigma)[8:-8, 8:-8]
    spots, n = label(np.abs(result - np.median(result)) > sigma / 2)
    large = int((np.bincount(spots.ravel())[1:] >= 4).sum()) if n else 0
    return {"left_sigma": round(float(result.std() / sigma), 4), "spots_of_4_pixels": large}


def edge_px(image: Image, row: int, columns: slice) -> float:
    """Return where the blood pool begins in a row: the place half way between the largest and the least value."""
    profile = image[row, columns]
    half = (profile.max() + profile.min()) / 2
    first = int(np.argmax(profile > half))
    before, after = profile[first - 1], profile[first]
    return float(first - 1 + (half - before) / (after - before))


def cine(ours: Ours) -> dict[str, Any]:
    """Return PSNR on a beating heart, frame by frame, and how far its edge is from where it belongs."""
    n = 256
    ours.forget(cine_image(0))
    found: dict[str, list[float]] = {"noisy": [], "ours": [], "BM3D": []}
    shift: dict[str, list[float]] = {"noisy": [], "ours": [], "BM3D": []}
    row, columns = round(n / 2 - 0.12 * n / 2), slice(round(n * 0.44), round(n * 0.56))
    for index in range(CINE_FRAMES):
        truth = cine_image(index)
        noisy = rician(np.random.default_rng([14, index]), truth, CINE_NOISE)
        cleaned = ours(noisy, CINE_NOISE)
        if index < CINE_SETTLED or index % 3:
            continue
        images = {"noisy": noisy, "ours": cleaned, "BM3D": best(bm3d_candidates(noisy, CINE_NOISE), truth)}
        for method, image in images.items():
            found[method].append(psnr_db(image, truth, body_of(truth)))
            shift[method].append(abs(edge_px(image, row, columns) - edge_px(truth, row, columns)))
    return {
        method: {"body_db": round(statistics.fmean(found[method]), 2), "edge_off_px": round(max(shift[method]), 2)}
        for method in found
    }


def milliseconds(work: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Return median and 95th percentile after runs that warm up."""
    work(), work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median_ms": round(float(np.median(times)), 2), "p95_ms": round(float(np.percentile(times, 95)), 2)}


def speed(names: list[str]) -> list[dict[str, Any]]:
    """Return times at 256 and 512 on each CPU backend, and of the peers."""
    rows: list[dict[str, Any]] = []
    for size in (256, 512):
        noisy = rician(np.random.default_rng(15), np.full((size, size), 0.5, np.float32), 0.05)
        for name in names:
            kinds: list[tuple[str, Any]] = [("f32", OnnxRuntime("cpu", THREADS)), ("f32", OpenVino(THREADS))]
            if has_native_bf16():
                kinds.append(("bf16", OpenVino(THREADS)))
            for precision, backend in kinds:
                ours = Ours(name, precision, backend)
                ours.forget(noisy)
                label_ = f"{name}, {backend.name} {precision}"
                rows.append({"size": size, "what": label_, **milliseconds(partial(ours, noisy, 0.05), 40)})
        rows.append({"size": size, "what": "NLM", **milliseconds(partial(non_local_means, noisy, 0.05), 3)})
        start = time.perf_counter()
        bm3d(noisy, 0.05)
        rows.append({"size": size, "what": "BM3D", "median_ms": round((time.perf_counter() - start) * 1e3)})
    return rows


def floor_ms(size: int) -> float:
    """Return what a copy of the image takes: no method is faster."""
    image = np.zeros((size, size), np.float32)
    return milliseconds(image.copy, 50)["median_ms"]


def print_quality(results: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"\n{'in-body PSNR dB (whole image) SSIM':<44}{'method':<24}{'body':>7}{'whole':>9}{'SSIM':>9}")
    for what, methods in results.items():
        for method, found in methods.items():
            print(f"{what:<44}{method:<24}{found['body_db']:7.2f}{found['whole_db']:9.2f}{found['body_ssim']:9.4f}")


def write_pictures(folder: Path, ours: Denoise) -> None:
    """Write noisy, ours, BM3D and what ours removed, side by side, of phantoms (no patient's face)."""
    from skimage.io import imsave

    rows = []
    for truth in (phantoms()["held-out dead leaves"][0], cine_image(0)):
        sigma = 0.08 * float(truth.max())
        noisy = rician(np.random.default_rng(16), truth, sigma)
        clean = ours(noisy, sigma)
        peer = best(bm3d_candidates(noisy, sigma), truth)
        shown = [image / truth.max() for image in (truth, noisy, clean, peer)]
        shown.append(0.5 + (noisy - clean) / (8 * sigma))
        rows.append(np.concatenate([np.clip(image, 0, 1) for image in shown], axis=1))
    imsave(folder / "mr-denoise.png", (np.concatenate(rows) * 255).astype(np.uint8), check_contrast=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for pictures")
    parser.add_argument("--speed-only", action="store_true")
    given = parser.parse_args()
    names = ["mr-denoise", "mr-denoise-cine"]
    found: dict[str, Any] = {"cpu": platform.processor(), "threads": THREADS}
    if not given.speed_only:
        ours = Ours("mr-denoise")
        sets = dict(phantoms())
        if SERIES.exists():
            sets["T1 head, real"] = real_slices(SERIES)
        found["quality"] = {
            f"{what}, {percent} %": quality(ours, truths, percent)
            for what, truths in sets.items()
            for percent in NOISE_PERCENT
        }
        print_quality(found["quality"])
        found["lesions_kept_percent"] = lesions(ours)
        print("\ncontrast of small disks that is kept, percent")
        for row in found["lesions_kept_percent"]:
            print("  ".join(f"{key} {value}" for key, value in row.items()))
        peer: Denoise = lambda noisy, sigma: bm3d_candidates(noisy, sigma)[0]  # noqa: E731
        found["false_structures"] = {
            f"{what}, {method}": false_structures(run, level)
            for what, level in (("air", 0.0), ("flat tissue", 1.0))
            for method, run in (("ours", ours), ("BM3D", peer))
        }
        truth = phantoms()["held-out dead leaves"][0]
        found["noise_free"] = {
            "level 0: largest change": float(np.abs(ours(truth, 0.0) - truth).max()),
            "level estimated: in-body PSNR dB": round(psnr_db(ours(truth, estimate_noise(truth)), truth), 1),
        }
        found["cine"] = cine(Ours("mr-denoise-cine"))
        for key in ("false_structures", "noise_free", "cine"):
            print(f"\n{key}")
            for what, value in found[key].items():
                print(f"  {what}: {value}")
    if given.pictures:
        write_pictures(given.pictures, Ours("mr-denoise"))
    found["speed"] = speed(names)
    print(
        f"\nspeed, {THREADS} threads; floor (copy of the image): {floor_ms(256)} ms at 256, {floor_ms(512)} ms at 512"
    )
    for row in found["speed"]:
        print(f"{row['size']:>5}  {row['what']:<44}{row['median_ms']:>10} ms   p95 {row.get('p95_ms', '-')}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(main())
