# SPDX-License-Identifier: Apache-2.0
"""GRAPPA beside pygrappa.mdgrappa on the same data in the same run: time per frame and image error.

    python benchmarks/grappa.py [--json FILE] [--repeats N]

Both get an R=2 frame with 24 calibration lines; the error is that of the magnitude to the fully sampled frame's,
with the same coil combination for all three. One thread each. "cached" is what a live frame costs once its slice is
calibrated; "floor" is the time of the bare FFT of the acquired lines. The peer always calibrates, with its default
kernel, which reaches two lines from the target.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is imported

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.fft
from numpy.typing import NDArray
from pygrappa import mdgrappa

from appliance.frames import Encoding
from appliance.mri.combine_coils import combine_coils, estimate_sensitivities
from appliance.mri.fourier import to_image
from appliance.mri.phantom import cine_kspace
from appliance.mri.reconstruct import Grid, calibrate_slice, magnitude, reconstruct

KSpace = NDArray[np.complex64]
REAL_FILE = Path("../shared/data/mrd/brain8ch_semireal_full.h5")
N_CALIBRATION = 24


def real_slice() -> KSpace:
    """The semi-real brain slice, fully sampled, (coil, ky, kx)."""
    import ismrmrd

    dataset = ismrmrd.Dataset(str(REAL_FILE), "dataset", mode="r")
    lines = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    return np.stack([line.data for line in sorted(lines, key=lambda a: a.idx.kspace_encode_step_1)], axis=1)


def milliseconds(work: Callable[[], Any], repeats: int) -> float:
    """Median over `repeats` runs after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def error(image: NDArray[Any], truth: NDArray[Any]) -> float:
    """NRMSE of magnitudes."""
    return float(np.linalg.norm(np.abs(image) - np.abs(truth)) / np.linalg.norm(truth))


def grid_for(kspace: KSpace, acceleration: int) -> Grid:
    """The grid of a frame without oversampling."""
    n_coils, n_ky, n_kx = kspace.shape
    size, fov = (n_kx, n_ky, 1), (300.0, 300.0, 5.0)
    return Grid.of(Encoding(size, size, fov, fov, n_coils, acceleration))


def ours(kspace: KSpace, repeats: int) -> dict[str, float]:
    """Times and error of this package."""
    n_ky = kspace.shape[1]
    regular = np.arange(0, n_ky, 2)
    block = np.arange(n_ky // 2 - N_CALIBRATION // 2, n_ky // 2 + N_CALIBRATION // 2)
    reference_lines, lines = kspace[:, block], np.ascontiguousarray(kspace[:, regular])
    grid, full_grid = grid_for(kspace, 2), grid_for(kspace, 1)

    def cached() -> NDArray[np.float32]:
        return magnitude(reconstruct(unmixing, grid, lines, regular))

    unmixing = calibrate_slice(grid, reference_lines, block)
    full = calibrate_slice(full_grid, reference_lines, block)
    truth = magnitude(reconstruct(full, full_grid, kspace, np.arange(n_ky)))
    calibration_ms = milliseconds(lambda: calibrate_slice(grid, reference_lines, block), max(3, repeats // 10))
    return {
        "cached_ms": milliseconds(cached, repeats),
        "calibration_ms": calibration_ms,
        "nrmse": error(cached(), truth),
        "floor_ms": milliseconds(lambda: scipy.fft.ifft2(lines, workers=1), repeats),
    }


def peer(kspace: KSpace, repeats: int) -> dict[str, float]:
    """Time and error of pygrappa.mdgrappa, which keeps the calibration lines as they were measured."""
    n_ky = kspace.shape[1]
    sampled = np.zeros_like(kspace)
    sampled[:, ::2] = kspace[:, ::2]
    block = slice(n_ky // 2 - N_CALIBRATION // 2, n_ky // 2 + N_CALIBRATION // 2)
    sampled[:, block] = kspace[:, block]
    reference_lines = np.ascontiguousarray(kspace[:, block])

    def once() -> NDArray[np.complex64]:
        return np.asarray(mdgrappa(sampled, reference_lines, kernel_size=(5, 5), coil_axis=0))

    maps = estimate_sensitivities(reference_lines, (n_ky, kspace.shape[2]))
    image, truth = (combine_coils(to_image(k), maps) for k in (once().astype(np.complex64), kspace))
    return {"frame_ms": milliseconds(once, repeats), "nrmse": error(image, truth)}


def machine() -> dict[str, Any]:
    """What this ran on."""
    cpu = platform.processor()
    if sys.platform == "linux":
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        cpu = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), cpu)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": 1, "load_before": round(load, 2), **versions}


def compare(name: str, kspace: KSpace, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    mine, theirs = ours(kspace, repeats), peer(kspace, max(2, repeats // 30))
    with_calibration = mine["calibration_ms"] + mine["cached_ms"]
    return {
        "data": name,
        "shape": list(kspace.shape),
        "ours": mine,
        "pygrappa_mdgrappa": theirs,
        "times_faster_cached": theirs["frame_ms"] / mine["cached_ms"],
        "times_faster_with_calibration": theirs["frame_ms"] / with_calibration,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Ours beside the peer."""
    head = (
        "data",
        "floor ms",
        "cached ms",
        "calibrate ms",
        "mdgrappa ms",
        "× cached",
        "× with cal.",
        "NRMSE",
        "peer's",
    )
    print("{:>14} {:>9} {:>10} {:>13} {:>12} {:>9} {:>12} {:>8} {:>8}".format(*head))
    for row in rows:
        mine, theirs = row["ours"], row["pygrappa_mdgrappa"]
        print(
            f"{row['data']:>14} {mine['floor_ms']:9.2f} {mine['cached_ms']:10.2f} {mine['calibration_ms']:13.1f} "
            f"{theirs['frame_ms']:12.0f} {row['times_faster_cached']:9.0f} "
            f"{row['times_faster_with_calibration']:12.1f} {mine['nrmse']:8.4f} {theirs['nrmse']:8.4f}"
        )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=100, help="runs per median of the cached frame")
    arguments = parser.parse_args()
    described = machine()
    data = {"phantom 8 ch": cine_kspace(3), "phantom 32 ch": cine_kspace(3, n_coils=32)}
    if REAL_FILE.exists():
        data["brain 8 ch"] = real_slice()
    rows = [compare(name, kspace, arguments.repeats) for name, kspace in data.items()]
    print(", ".join(f"{key} {value}" for key, value in described.items()))
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": described, "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
