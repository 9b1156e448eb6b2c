# SPDX-License-Identifier: Apache-2.0
"""The CT denoiser and the speckle filter beside others on the same images in the same run.

    python -m benchmarks.denoise_ct_us [--json FILE] [--pictures FOLDER] [--models FOLDER] [--no-speed]

BM3D is the package `bm3d`, free for non-commercial use and for that reason in none of our requirements:
`pip install bm3d`. It, and non-local means, are told the noise in the body as one number; so is ours, except where it
has the map or estimates. All on the reference backend, one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bm3d import bm3d
from numpy.typing import NDArray
from PIL import Image as Picture
from skimage.metrics import structural_similarity

from appliance.ct.noise import estimate_ct_noise
from appliance.inference.card import read_model, shipped_models
from appliance.inference.onnxruntime import OnnxRuntime
from appliance.ultrasound.speckle import estimate_speckle
from benchmarks.denoise import milliseconds
from training import validate_ct, validate_us
from training.low_dose_ct import scan_low_dose
from training.parallel_beam import beam_for
from training.validate_ct import PEAK_HU, clean_hu, known_level
from training.validate_us import WHITE, clean_display

Image = NDArray[np.float32]
Filter = Callable[[Image, float], Image]

SHARED = Path("../shared/data")
HEAD = SHARED / "series/ct_head_ge.tar.xz"
REAL_HU = 20.0  # real slices at this level only: BM3D takes long for them; the card has the others
ANGLES_DEG = (0, 20, 40)  # of needles, from across the beam
APART_PX = 24  # lesions
DIAMETERS_PX, CONTRASTS = (2, 4, 6), (1.0, 2.0, 4.0)


class Ours:
    """A shipped model on the reference backend."""

    def __init__(self, name: str, folder: Path) -> None:
        model = read_model(name, folder)
        self.run = OnnxRuntime(threads=1).load(model.onnx, model.card.signature, "f32").run
        self.multiple_px = model.card.input.multiple_px

    def hu(self, noisy: Image, level: Image | float) -> Image:
        return clean_hu(noisy, level, self.run, self.multiple_px)

    def display(self, shown: Image, level: float) -> Image:
        return clean_display(shown, level, self.run, self.multiple_px)


def bm3d_hu(noisy: Image, sigma: float) -> Image:
    return np.asarray(bm3d(noisy / PEAK_HU, sigma / PEAK_HU) * PEAK_HU, np.float32)


def ct_quality(ours: Ours) -> list[dict[str, Any]]:
    """In-body error in HU of everything on bodies that were not trained on, and on real slices with noise added."""
    rows = []
    for level_hu in validate_ct.LEVELS_HU:
        series = HEAD if HEAD.exists() and level_hu == REAL_HU else None
        for what, scans in validate_ct.validation_sets(series, level_hu):
            errors: dict[str, list[float]] = {}
            for scan in scans:
                noisy, sigma = scan.truth + scan.noise, known_level(scan)
                results = {
                    "noisy": noisy,
                    "ours, map": ours.hu(noisy, scan.level),
                    "ours, number": ours.hu(noisy, sigma),
                    "ours, estimated": ours.hu(noisy, estimate_ct_noise(noisy)),
                    "NLM": validate_ct.non_local_means(noisy, sigma),
                    "BM3D": bm3d_hu(noisy, sigma),
                }
                for name, image in results.items():
                    errors.setdefault(name, []).append(validate_ct.rmse_hu(image, scan.truth))
            rms = {name: round(float(np.sqrt(np.mean(np.square(e)))), 2) for name, e in errors.items()}
            rows.append({"data": what, "level_hu": level_hu, **rms})
    return rows


def lesion_field(diameter_px: int, contrast_hu: float, size: int = 256) -> tuple[Image, Image]:
    """(a cylinder of 40 HU with disks, its share of each pixel covered by a disk)."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radius = np.hypot(y, x)
    dy, dx = ((axis + 0.3 + APART_PX / 2) % APART_PX - APART_PX / 2 for axis in (y, x))
    disk = np.clip(diameter_px / 2 + 0.5 - np.hypot(dy, dx), 0, 1) * (radius < 0.36 * size)
    body = np.where(radius < 0.45 * size, 40 + contrast_hu * disk, -1000)
    return body.astype(np.float32), disk.astype(np.float32)


def lesions(ours: Ours, level_hu: float = 20.0) -> list[dict[str, Any]]:
    """Part of their contrast that disks keep: the slope of the result against what was planted."""
    rows, beam = [], beam_for(256, 360, 1.2, 1.0, 1.0)
    for diameter in DIAMETERS_PX:
        for ratio in CONTRASTS:
            truth, disk = lesion_field(diameter, ratio * level_hu)
            flat = np.where(truth > -500, np.float32(40), truth)
            kept: dict[str, list[float]] = {"noisy": [], "ours": [], "NLM": [], "BM3D": []}
            for scan in scan_low_dose(np.random.default_rng(6), truth, beam, 1.2, level_hu, n_scans=2):
                noisy, sigma = truth + scan.noise, known_level(scan)
                results = (
                    noisy,
                    ours.hu(noisy, scan.level),
                    validate_ct.non_local_means(noisy, sigma),
                    bm3d_hu(noisy, sigma),
                )
                for name, image in zip(kept, results, strict=True):
                    kept[name].append(_contrast(image - flat, disk) / _contrast(truth - flat, disk))
            means = {f"{name}_kept": round(float(np.mean(k)), 3) for name, k in kept.items()}
            rows.append({"diameter_px": diameter, "contrast_to_noise": ratio, **means})
    return rows


def _contrast(image: Image, disk: Image) -> float:
    """Mean within the disks less that of the rings about them."""
    size = len(disk)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    dy, dx = ((axis + 0.3 + APART_PX / 2) % APART_PX - APART_PX / 2 for axis in (y, x))
    ring = (np.abs(np.hypot(dy, dx) - 9) < 2) & (np.hypot(y, x) < 0.33 * size)
    return float((image * disk).sum() / disk.sum() - image[ring].mean())


def safety_ct(ours: Ours) -> dict[str, float]:
    """What happens where there is nothing to take out, and what appears where nothing is."""
    truth, _ = lesion_field(4, 0.0)
    (scan,) = scan_low_dose(np.random.default_rng(7), truth, beam_for(256, 360, 1.2), 1.2, 20.0)
    inner = np.hypot(*(np.mgrid[:256, :256] - 127.5)) < 100
    cleaned = ours.hu(truth + scan.noise, scan.level) - truth
    (body,) = validate_ct.simulated(20.0, 1)
    return {
        "noise-free, level 0: largest change, HU": float(np.abs(ours.hu(body.truth, 0.0) - body.truth).max()),
        "noise-free, level 2 HU: rms change in the body, HU": validate_ct.rmse_hu(ours.hu(body.truth, 2.0), body.truth),
        "flat phantom, noise 20 HU: rms left, HU": float(cleaned[inner].std()),
        "flat phantom: largest thing left, HU": float(np.abs(cleaned[inner]).max()),
        "flat phantom: largest thing before, HU": float(np.abs(scan.noise[inner]).max()),
        "flat phantom: mean error, HU": float(cleaned[inner].mean()),
    }


def safety_us(ours: Ours) -> dict[str, float]:
    """What happens to a display that has no speckle."""
    (scene, *_) = validate_us.displays(1)
    estimated = ours.display(scene.truth, estimate_speckle(scene.truth))
    return {
        "no speckle, level 0: largest change, grey levels": float(
            np.abs(ours.display(scene.truth, 0.0) - scene.truth).max()
        ),
        "no speckle, level estimated: rms change, grey levels": float(np.std(estimated - scene.truth)),
    }


def us_quality(ours: Ours) -> list[dict[str, Any]]:
    """PSNR and SSIM against displays without speckle."""
    made = validate_us.displays()
    filters: dict[str, Filter] = {
        "noisy": lambda shown, _level: shown,
        "ours": ours.display,
        "ours, estimated": lambda shown, _level: ours.display(shown, estimate_speckle(shown)),
        **validate_us.PEERS,
    }
    rows = []
    for name, clean in filters.items():
        results = [(clean(one.shown, one.level), one.truth) for one in made]
        psnr = np.mean([validate_us.psnr_db(image, truth) for image, truth in results])
        ssim = np.mean([structural_similarity(image, truth, data_range=WHITE) for image, truth in results])
        rows.append({"filter": name, "psnr_db": round(float(psnr), 2), "ssim": round(float(ssim), 3)})
    return rows


def needle_and_cyst(ours: Ours) -> list[dict[str, Any]]:
    """A needle's height and width in the result, at several angles, and the contrast to noise of a cyst."""
    filters: dict[str, Filter] = {"noisy": lambda s, _l: s, "ours": ours.display, **validate_us.PEERS}
    scenes = {angle: validate_us.needle_display(angle) for angle in ANGLES_DEG}
    rows = []
    for name in ("truth", *filters):
        row: dict[str, Any] = {"filter": name}
        for angle, scene in scenes.items():
            image = scene.truth if name == "truth" else filters[name](scene.shown, scene.level)
            grey, width_px = validate_us.needle_profile(image, angle)
            row |= {f"grey_{angle}_deg": round(grey, 1), f"px_{angle}_deg": round(width_px, 1)}
        inside, outside = image[validate_us.cyst_of(24)], image[160:220, 20:100]
        row["cyst_cnr"] = round(float((outside.mean() - inside.mean()) / np.hypot(outside.std(), inside.std())), 2)
        rows.append(row)
    return rows


def speed(ct: Ours) -> list[dict[str, Any]]:
    """Milliseconds of one image, median of five; the denoiser with its estimate of the noise."""
    rows = []
    for size in (256, 512):
        image = np.random.default_rng(0).normal(0, 20, (size, size)).astype(np.float32)
        ways: dict[str, Callable[[], Any]] = {
            "ours": lambda image=image: ct.hu(image, estimate_ct_noise(image)),  # type: ignore[misc]
            "NLM": lambda image=image: validate_ct.non_local_means(image, 20.0),  # type: ignore[misc]
            "BM3D": lambda image=image: bm3d_hu(image, 20.0),  # type: ignore[misc]
        }
        times = {name: milliseconds(work, 1 if name == "BM3D" else 5)["median_ms"] for name, work in ways.items()}
        rows.append({"size": size, **{f"{name}_ms": round(ms, 1) for name, ms in times.items()}})
        rows[-1]["bm3d_over_ours"] = round(times["BM3D"] / times["ours"], 1)
    return rows


def pictures(ct: Ours, us: Ours, folder: Path) -> None:
    """Truth, noisy, ours, peer, what ours removed: two simulated bodies, a simulated display and a needle."""
    rows = []
    for scan in validate_ct.simulated(20.0, 2):
        noisy = scan.truth + scan.noise
        cleaned = ct.hu(noisy, scan.level)
        grey = [np.clip((a + 160) / 400, 0, 1) for a in (scan.truth, noisy, cleaned, bm3d_hu(noisy, known_level(scan)))]
        rows.append([*grey, np.clip(0.5 + (noisy - cleaned) / 160, 0, 1)])
    _save(folder / "ct-denoise.png", rows)
    rows = []
    for scene in (validate_us.displays(2)[1], validate_us.needle_display(20)):
        cleaned = us.display(scene.shown, scene.level)
        shown = (scene.truth, scene.shown, cleaned, validate_us.non_local_means(scene.shown, scene.level))
        rows.append([*(image / WHITE for image in shown), np.clip(0.5 + (scene.shown - cleaned) / WHITE, 0, 1)])
    _save(folder / "us-despeckle.png", rows)


def _save(path: Path, rows: list[Any]) -> None:
    grey = np.vstack([np.hstack(row) for row in rows]).clip(0, 1)
    Picture.fromarray(np.rint(255 * grey).astype(np.uint8)).save(path, optimize=True)


def table(rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys."""
    widths = [max(len(str(row[key])) for row in [*rows, {key: key}]) for key in rows[0]]
    for row in [{key: key for key in rows[0]}, *rows]:
        print("  ".join(str(v).ljust(width) for v, width in zip(row.values(), widths, strict=True)).rstrip())
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--no-speed", action="store_true", help="for a machine that does other things, too")
    parser.add_argument("--models", type=Path, default=shipped_models())
    given = parser.parse_args()
    ct, us = Ours("ct-denoise", given.models), Ours("us-despeckle", given.models)
    result: dict[str, Any] = {"safety": safety_ct(ct) | safety_us(us)}
    for name, value in result["safety"].items():
        print(f"{name}: {value:.3g}")
    print()
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "us": lambda: us_quality(us),
        "needle_and_cyst": lambda: needle_and_cyst(us),
        "lesions": lambda: lesions(ct),
        "ct_rmse_hu": lambda: ct_quality(ct),
    }
    if not given.no_speed:
        parts["speed"] = lambda: speed(ct)
    for name, measure in parts.items():
        print(name)
        result[name] = measure()
        table(result[name])
    if given.pictures:
        pictures(ct, us, given.pictures)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
