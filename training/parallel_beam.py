# SPDX-License-Identifier: Apache-2.0
"""Parallel-beam projection and filtered back-projection.

Positions are in pixels from the image's centre, (n - 1) / 2; detector bins lie `bin_px` apart about the same centre.
The ray of angle a and position t is x cos a + y sin a = t, with y down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Image = NDArray[np.float32]
Sinogram = NDArray[np.float32]  # (view, bin)


@dataclass(frozen=True)
class Beam:
    """Where the rays run, and how sharp the reconstruction is."""

    n_views: int
    n_bins: int
    bin_px: float = 1.0
    cutoff: float = 1.0  # of the detector's Nyquist frequency, where the Hann window reaches 0 …
    hann: float = 1.0  # … 0: no window up to there, 1: all of it
    start: float = 0.0  # first angle

    @property
    def angles(self) -> NDArray[np.float64]:
        return self.start + np.arange(self.n_views) * np.pi / self.n_views


def beam_for(size: int, n_views: int, bin_px: float = 1.0, cutoff: float = 1.0, hann: float = 1.0) -> Beam:
    """Return the beam that covers a square image of `size` pixels, corners too."""
    return Beam(n_views, int(np.ceil(size * 2**0.5 / bin_px)) + 2, bin_px, cutoff, hann)


def project(image: Image, beam: Beam) -> Sinogram:
    """Return the line integrals of a square `image` (y, x), in its unit times pixels.

    Linear interpolation on each row or column that the ray crosses.
    Reference: Joseph 1982, doi:10.1109/TMI.1982.4307572.
    """
    size, t = len(image), _positions(beam)
    along = np.arange(size) - (size - 1) / 2
    padded = [np.pad(a, ((0, 0), (1, 2))) for a in (image, image.T)]  # zeros outside: no bounds to check
    sinogram = np.empty((beam.n_views, beam.n_bins), np.float32)
    for view, angle in enumerate(beam.angles):
        c, s, rows = np.cos(angle), np.sin(angle), padded[0]
        if abs(c) < abs(s):
            c, s, rows = s, c, padded[1]
        across = (t - along[:, None] * s) / c + (size - 1) / 2 + 1
        across = np.clip(across, 0, size + 1).astype(np.float32)
        index = across.astype(np.int32)
        flat = index + (np.arange(size, dtype=np.int32) * (size + 3))[:, None]
        low, high = rows.ravel()[flat], rows.ravel()[flat + 1]
        sinogram[view] = (low + (across - index) * (high - low)).sum(axis=0) / abs(c)
    return sinogram


def filter_kernel(beam: Beam) -> NDArray[np.float64]:
    """Return the reconstruction filter at 0, 1, … bins, and negative ones from the end, 1 / pixel.

    The ramp's samples in space (no error of the mean), windowed in frequency.
    Reference: Kak, Slaney 1988, Principles of Computerized Tomographic Imaging, section 3.3.
    """
    n = fft.next_fast_len(2 * beam.n_bins)
    k = fft.fftfreq(n, 1 / n)
    ramp = np.zeros(n)
    odd = k.astype(int) % 2 == 1
    ramp[odd] = -1 / (np.pi * k[odd]) ** 2
    ramp[0] = 0.25
    part = np.minimum(np.abs(fft.fftfreq(n)) * 2 / beam.cutoff, 1)  # of the cutoff
    window = np.where(part < 1, 1 - beam.hann * (1 - np.cos(np.pi * part)) / 2, 0)
    return np.asarray(fft.ifft(fft.fft(ramp) * window).real / beam.bin_px)


def back_project(sinogram: Sinogram, beam: Beam, size: int) -> Image:
    """Return the mean over the views of each pixel's rays, times pi; (size, size), linear interpolation."""
    along = (np.arange(size, dtype=np.float32) - (size - 1) / 2) / np.float32(beam.bin_px)
    image = np.zeros((size, size), np.float32)
    padded = np.pad(sinogram, ((0, 0), (1, 2)))
    for row, angle in zip(padded, beam.angles, strict=True):
        if not row.any():
            continue
        where = np.float32(np.sin(angle)) * along[:, None] + np.float32(np.cos(angle)) * along
        where += np.float32((beam.n_bins - 1) / 2 + 1)
        np.clip(where, 0, beam.n_bins + 1, out=where)
        index = where.astype(np.int32)
        low = row[index]
        image += low + (where - index) * (row[index + 1] - low)
    return image * np.float32(np.pi / beam.n_views)


def reconstruct(sinogram: Sinogram, beam: Beam, size: int) -> Image:
    """Return the filtered back-projection, (size, size), in the sinogram's unit per pixel."""
    kernel = filter_kernel(beam)
    n = len(kernel)
    filtered = fft.irfft(fft.rfft(sinogram, n, axis=1) * fft.rfft(kernel), n, axis=1)[:, : beam.n_bins]
    return back_project(filtered.astype(np.float32), beam, size)


def reconstructed_variance(variance: Sinogram, beam: Beam, size: int) -> Image:
    """Return the variance of each reconstructed pixel, given that of the (independent) samples of the sinogram.

    The square of the filter as linear interpolation uses it, averaged over all positions between two bins.
    Reference: Kak, Slaney 1988, section 5.2.
    """
    kernel = filter_kernel(beam)
    after = np.roll(kernel, -1)
    squared = (kernel**2 + kernel * after + after**2) / 3
    n = len(kernel)
    filtered = fft.irfft(fft.rfft(variance, n, axis=1) * fft.rfft(squared), n, axis=1)[:, : beam.n_bins]
    return back_project(filtered.astype(np.float32), beam, size) * np.float32(np.pi / beam.n_views)


def _positions(beam: Beam) -> NDArray[np.float64]:
    return (np.arange(beam.n_bins) - (beam.n_bins - 1) / 2) * beam.bin_px
