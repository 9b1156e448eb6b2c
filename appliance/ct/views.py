# SPDX-License-Identifier: Apache-2.0
"""How much each view contributed to a CT image, told from the image alone.

By the projection-slice theorem a view of angle a is the line of that angle in the image's spectrum. The line is faint
where views are missing, and so is the noise that they would have brought. The fine structure of the image, summed along
the rays of that angle, is strong over a few tenths of a degree where the tube arced, and over many degrees where too
few photons came through; there the middle value over all rays is taken and not their power, because an edge of the
table stands on one ray only, and edges are brought down to the level of noise before.

Bands, widths and limits were chosen on 60 simulated slices that no figure of docs/models.md is measured on.

Reference: Kak, Slaney 1988, Principles of Computerized Tomographic Imaging, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter1d

Floats = NDArray[np.floating[Any]]

N_ANGLES = 720  # a quarter of a degree apart
SMALLEST_PX = 240  # CT has 256 and more; fewer pixels have too few frequencies and rays for a steady mean
FINE_BAND = (0.12, 0.42)  # cycles per pixel: above anatomy, below where smooth kernels have nothing
ANATOMY_BAND = (0.04, 0.20)  # where every body has structure of every direction
_FINE_PX = 1.5  # what a Gaussian of this width leaves is fine structure
_AROUND_PX = 3.0  # its strength is compared with that around it, a Gaussian of this width
_MOST_SPREADS = 3.0  # a point counts no more than this
_WHOLE_HU = 0.5  # weaker structure is rounding
_INNER = 0.7  # of the image's half width: rays farther out cross little of it
_NEIGHBOURS = 81  # angles, 20°: what is usual around an angle
_BORDER = 0.08  # of the image's width, faded out: the spectrum takes the opposite borders for neighbours
_RANGE_HU = (-1024.0, 1500.0)  # metal and padding would outshine all else
_TOGETHER = 5  # angles: fewer views than these 1.25 degrees are not missed


@dataclass(frozen=True)
class Views:
    """The views of one image, each against its neighbours, and their angles in degrees."""

    excess: float  # of fine structure, times what is usual within 10°
    excess_degrees: float
    width_degrees: float  # over which half that excess is reached
    loss: float  # times that the spectrum, or the fine structure, is fainter than is usual within 10°
    loss_degrees: float
    unevenness: float  # fine structure of the strongest 20°, times that of the middle one
    strongest_degrees: float


def measure_views(image: Floats) -> Views | None:
    """Return what `image`, finite (y, x) in HU, shows of its views; None where it is too small or has no content."""
    if min(image.shape) < SMALLEST_PX:
        return None
    fine = _ray_strengths(_fine_structure(image))
    anatomy = _line_strengths(np.clip(image, *_RANGE_HU) - _RANGE_HU[0])
    usual, usual_anatomy = (median_filter(a, _NEIGHBOURS, mode="wrap") for a in (fine, anatomy))
    if not usual.min() > 0 or not usual_anatomy.min() > 0:
        return None
    excess, strongest = fine / usual, int(usual.argmax())
    ratios = (np.log(usual_anatomy / anatomy), np.log(usual / np.maximum(fine, 1e-3 * usual)))
    loss = np.exp(np.maximum(*(uniform_filter1d(ratio, _TOGETHER, mode="wrap") for ratio in ratios)))
    at, lost = int(excess.argmax()), int(loss.argmax())
    above = np.roll(excess > 1 + (excess[at] - 1) / 2, N_ANGLES // 2 - at)
    run = np.flatnonzero(~above)
    before, after = run[run < N_ANGLES // 2], run[run > N_ANGLES // 2]
    width = (after[0] if len(after) else N_ANGLES) - (before[-1] if len(before) else -1) - 1
    step = 180 / N_ANGLES
    return Views(
        float(excess[at]),
        at * step,
        float(width * step),
        float(loss[lost]),
        lost * step,
        float(usual[strongest] / np.median(usual)),
        strongest * step,
    )


def _fine_structure(image: Floats) -> Floats:
    """Return what is finer than anatomy, in units of the usual strength, or of that around where it is stronger."""
    rest = image - gaussian_filter(image, _FINE_PX)
    strength = np.sqrt(gaussian_filter(np.square(rest), _AROUND_PX))
    some = strength[::4, ::4]
    some = some[some > _WHOLE_HU]
    usual = float(np.median(some)) if some.size else _WHOLE_HU
    return np.asarray(np.clip(rest / np.maximum(strength, usual), -_MOST_SPREADS, _MOST_SPREADS))


def _ray_strengths(image: Floats) -> Floats:
    """Return the middle value over the rays of each angle, of the band FINE_BAND."""
    lines, size = _radial_lines(image, FINE_BAND, np.hanning)
    profiles = np.abs(fft.irfft(lines, size, axis=1))
    reach = int(_INNER * min(image.shape) / 2)
    inner = np.concatenate([profiles[:, :reach], profiles[:, -reach:]], axis=1)
    return np.asarray(np.median(inner, axis=1))


def _line_strengths(image: Floats) -> Floats:
    """Return the geometric mean of the spectrum's magnitude on each angle's line, of the band ANATOMY_BAND."""
    lines, size = _radial_lines(image, ANATOMY_BAND, _faded)
    frequency = fft.rfftfreq(size)
    inside = lines[:, (frequency >= ANATOMY_BAND[0]) & (frequency <= ANATOMY_BAND[1])]
    return np.asarray(np.exp(np.log(np.abs(inside) + 1e-6).mean(axis=1)))


def _faded(n: int) -> Floats:
    """Return a window that falls to 0 over the outermost _BORDER on both sides."""
    distance = (0.5 + np.minimum(np.arange(n), np.arange(n)[::-1])) / (_BORDER * n)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(distance, 1)))


def _radial_lines(image: Floats, band: tuple[float, float], window: Any) -> tuple[Any, int]:
    """Return the spectrum on the lines of N_ANGLES angles, complex (angle, frequency), 0 outside `band`, and its size.

    Frequencies are those of rfft; the phase is that of rays counted from the image's centre.
    """
    n_y, n_x = image.shape
    size = fft.next_fast_len(2 * max(n_y, n_x), real=True)
    faded = (image * np.sqrt(window(n_y))[:, None] * np.sqrt(window(n_x))).astype(np.float32)
    spectrum = fft.fftshift(fft.rfft2(faded, (size, size), axes=(1, 0)), axes=1)  # y from 0, x from the most negative
    spectrum *= _turn(np.arange(len(spectrum)), n_y, size)[:, None]  # the centre in the origin: smooth enough …
    spectrum *= _turn(np.arange(size) - size // 2, n_x, size)  # … to be interpolated
    at, below, right, within = _positions(size, band)
    flat, step = spectrum.ravel(), size
    upper = flat[at] + right * (flat[at + 1] - flat[at])
    lower = flat[at + step] + right * (flat[at + step + 1] - flat[at + step])
    lines = np.zeros((N_ANGLES, size // 2 + 1), np.complex64)
    lines[:, within] = upper + below * (lower - upper)
    return lines, size


def _turn(frequency: NDArray[np.intp], n: int, size: int) -> Any:
    return np.exp(1j * np.pi * frequency * (n - 1) / size).astype(np.complex64)


@cache
def _positions(size: int, band: tuple[float, float]) -> tuple[NDArray[np.intp], Floats, Floats, NDArray[np.intp]]:
    """Return where the lines are in the half spectrum, (angle, frequency), and which frequencies `band` has.

    The first of four neighbours as an index of the ravelled spectrum, and how far towards the next row and column.
    """
    angles = np.arange(N_ANGLES)[:, None] * np.pi / N_ANGLES
    frequency = fft.rfftfreq(size)
    within = np.flatnonzero((frequency >= band[0]) & (frequency <= band[1]))
    radius = frequency[within] * size
    rows, columns = np.sin(angles) * radius, np.cos(angles) * radius + size // 2
    row, column = (np.floor(a).astype(np.intp) for a in (rows, columns))
    return row * size + column, (rows - row).astype(np.float32), (columns - column).astype(np.float32), within
