# SPDX-License-Identifier: Apache-2.0
"""Images from raw 2D Cartesian k-space: prewhitening, oversampling, GRAPPA, partial Fourier, coil combination.

In:  (coil, ky, kx) complex64, acquired lines only, any device
Out: (y, x) float32 magnitude, same device; attachments "kspace" (the input) and "noise_map" (its standard deviation)
Weights are computed once for each slice position: off the graph's thread when calibration lines come separately,
with the first frame when they are embedded. References: see appliance/mri/grappa.py and its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from appliance.arrays import to_host
from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Affine, Array, Frame, Scan, read_only
from appliance.mri import prewhiten
from appliance.mri import reconstruct as mri
from appliance.mri.unmix import Unmixing, beside
from operators import OperatorSettings

MOVED_MM = 5.0  # coils look alike over less; beyond, weights of one position do not fit the other


class Settings(OperatorSettings):
    method: Literal["grappa", "rss"] = Field(
        "grappa", description="'grappa' unfolds undersampled data; 'rss' is zero-filled root sum of squares."
    )
    kernel_lines: Literal[2, 4] = Field(4, description="Acquired lines in a GRAPPA kernel.")
    kernel_columns: Literal[3, 5, 7] = Field(5, description="Columns in a GRAPPA kernel.")
    regularisation: float = Field(
        1e-3, ge=1e-6, le=1, description="Tikhonov weight of the GRAPPA fit, relative to the mean eigenvalue; no unit."
    )


def make(settings: Settings, context: Context) -> Reconstruct:
    """Return the stage."""
    return Reconstruct(settings)


@dataclass
class _Slice:
    """Weights of one slice position, perhaps still on their way, and the noise map that follows from them."""

    affine: Affine
    unmixing: Future[Unmixing]
    noise: NDArray[np.float32] | None = None

    def fits(self, frame: Frame, grid: mri.Grid) -> bool:
        """Whether there are, or will be, weights for where this frame lies."""
        failed = self.unmixing.done() and self.unmixing.exception() is not None
        return not failed and mri.displacement_mm(self.affine, frame.affine, grid) < MOVED_MM


class Reconstruct:
    """One scan."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._grid: mri.Grid | None = None
        self._covariance: NDArray[np.complex128] | None = None
        self._slices: dict[int, _Slice] = {}
        self._executor = ThreadPoolExecutor(1, "calibrate")  # its thread starts with the first work
        self._n_calibrations = 0

    def begin(self, scan: Scan) -> Scan:
        """Refuse what is not raw 2D Cartesian k-space."""
        if scan.axes != ("coil", "ky", "kx") or scan.encoding is None:
            axes = ", ".join(scan.axes)
            text = f"expected raw k-space (coil, ky, kx), got ({axes}); take reconstruct out of this pipeline"
            raise StageError(f"reconstruct: {text}", scan.scan_id)
        try:
            self._grid = mri.Grid.of(scan.encoding)
        except ValueError as error:
            raise StageError(f"reconstruct: {error}", scan.scan_id) from error
        return replace(scan, axes=("y", "x"), shape=(self._grid.n_y, self._grid.n_x), dtype="float32")

    def prepare(self, frame: Frame) -> None:
        """Take the noise measurement; start on separate calibration lines on a thread of their own."""
        try:
            if frame.role == "noise":
                self._covariance = prewhiten.noise_covariance(to_host(frame.array))
            elif self._settings.method == "grappa":
                self._calibrate(frame, *self._lines(frame))
        except ValueError as error:
            raise StageError(f"reconstruct: {error}", frame.scan_id) from error

    def frame(self, frame: Frame) -> Frame:
        """Reconstruct one image. Raises StageError when it cannot be unfolded."""
        if self._settings.method == "rss":
            return self.fallback(frame)
        try:
            return self._unfold(frame, *self._lines(frame))
        except (ValueError, np.linalg.LinAlgError) as error:
            raise StageError(f"reconstruct: {error}", frame.scan_id) from error

    def fallback(self, frame: Frame) -> Frame:
        """Zero-filled root sum of squares."""
        grid, index = self._lines(frame)
        return _image(frame, mri.zero_filled(grid, frame.array, index), {})

    def end(self) -> Iterable[Frame]:
        """Nothing is held back."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        return ()

    def status(self) -> dict[str, Any]:
        """Plain values."""
        return {"method": self._settings.method, "calibrations": self._n_calibrations, "slices": len(self._slices)}

    def _lines(self, frame: Frame) -> tuple[mri.Grid, NDArray[np.int64]]:
        if self._grid is None or frame.array.ndim != 3 or frame.array.shape[2] != self._grid.n_kx:
            raise ValueError(f"k-space of shape {frame.array.shape} does not fit the header {self._grid}")
        return self._grid, self._grid.index(frame.attachments["ky"])

    def _calibrate(self, frame: Frame, grid: mri.Grid, index: NDArray[np.int64]) -> _Slice:
        kernel = (self._settings.kernel_lines, self._settings.kernel_columns)
        lines, run = to_host(frame.array), mri.calibration_run(index, grid.n_ky)
        noise = prewhiten.noise_from_periphery(lines) if self._covariance is None else self._covariance
        mri.require_signal(lines[:, run], noise)
        work = (grid, lines[:, run], index[run], self._covariance, kernel, self._settings.regularisation)
        self._n_calibrations += 1
        self._slices[frame.position.slice] = _Slice(frame.affine, self._executor.submit(mri.calibrate_slice, *work))
        return self._slices[frame.position.slice]

    def _unfold(self, frame: Frame, grid: mri.Grid, index: NDArray[np.int64]) -> Frame:
        known = self._slices.get(frame.position.slice)
        if known is None or not known.fits(frame, grid):
            known = self._calibrate(frame, grid, index)
        regular = mri.imaging_lines(index, frame.attachments["calibration_only"], grid.acceleration)
        lines = frame.array if len(regular) == len(index) else frame.array[:, regular]
        image = mri.reconstruct(beside(known.unmixing.result(), frame.array), grid, lines, index[regular])
        if known.noise is None:
            covariance = prewhiten.noise_from_periphery(lines) if self._covariance is None else self._covariance
            known.noise = read_only(mri.noise_map(known.unmixing.result(), grid, index[regular], covariance))
        return _image(frame, mri.magnitude(image), {"noise_map": known.noise})


def _image(frame: Frame, image: Array, more: dict[str, Array]) -> Frame:
    attachments = {**frame.attachments, "kspace": frame.array, **more}
    return replace(frame, array=read_only(image), axes=("y", "x"), attachments=attachments)
