# SPDX-License-Identifier: Apache-2.0
"""Simulated MRI acquisitions, clean or with one planted fault: coils, noise, undersampling, reconstruction.

Strengths are drawn from what a person would want to be told: each `_plant_…` says its range. Faults of the patient are
planted before, faults of the receiver after noise and undersampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, rotate, zoom

from appliance.frames import Encoding
from appliance.mri.fourier import to_kspace
from appliance.mri.reconstruct import Grid, calibrate_slice, magnitude, reconstruct
from appliance.mri.unmix import Unmixing
from training.dead_leaves import dead_leaves

Image = NDArray[np.float32]
Kspace = NDArray[np.complex64]

N_CALIBRATION = 24


class Acquired(NamedTuple):
    """One frame: lines (coil, ky, kx), their indices, and the reconstructed image (y, x)."""

    kspace: Kspace
    ky: NDArray[np.int64]
    image: Image


@dataclass(frozen=True)
class Coils:
    """A ring of smooth receive coils, of some size and angle, with the object's own smooth phase."""

    n: int
    angle: float
    radius: float
    width: float
    phase: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int) -> Coils:
        """Draw one ring."""
        phase = rng.normal(0, 0.6, 3)
        return cls(n, rng.uniform(0, 6.3), rng.uniform(0.95, 1.2), rng.uniform(0.12, 0.3), tuple(phase))

    def maps(self, n_y: int, n_x: int, overflow: float = 1.0) -> Kspace:
        """Return sensitivities times phase, (coil, y, x), over `overflow` fields of view along y."""
        y = (((np.arange(n_y) - n_y // 2) * 2 / n_y) * overflow)[:, None].astype(np.float32)
        x = ((np.arange(n_x) - n_x // 2) * 2 / n_x)[None, :].astype(np.float32)
        maps = np.empty((self.n, n_y, n_x), np.complex64)
        for coil in range(self.n):
            angle = self.angle + 2 * np.pi * coil / self.n
            dx, dy = x - self.radius * np.cos(angle), y - self.radius * np.sin(angle)
            turn = np.exp(1j * (angle + 0.9 * np.cos(angle) * y - 0.9 * np.sin(angle) * x))
            maps[coil] = turn / (self.width + dx**2 + dy**2)
        maps /= np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
        a, b, c = self.phase
        return np.asarray(maps * np.exp(1j * (a * x + b * y + c * x * y)), np.complex64)


def anatomy(rng: np.random.Generator, size: int) -> Image:
    """Return a body of many tissues with air around it, float32 (size, size), its brightest tissue near 1."""
    tissue = dead_leaves(rng, size)
    y, x = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    cy, cx = rng.uniform(-0.1, 0.1, 2)
    half_y, half_x = rng.uniform(0.45, 0.75), rng.uniform(0.45, 0.85)
    angle = np.arctan2(y - cy, x - cx)
    wave = 1 + sum(rng.normal(0, 0.05 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6))
    radius = np.hypot((y - cy) / half_y, (x - cx) / half_x) / wave
    rim = rng.uniform(0.03, 0.12)
    body = np.where(radius < 1 - rim, rng.uniform(0.1, 0.5) + tissue, rng.uniform(0.2, 1.4)) * (radius < 1)
    if rng.uniform() < 0.4:  # lungs, sinuses, ventricles without signal
        for _ in range(rng.integers(1, 3)):
            hole = np.hypot((y - rng.uniform(-0.3, 0.3)) / 0.25, (x - rng.uniform(-0.4, 0.4)) / 0.2)
            body = np.where(hole < 1, 0.15 * body, body)
    body = gaussian_filter(body.astype(np.float32), 0.7)
    return np.asarray(body / max(float(np.percentile(body, 99)), 1e-3), np.float32)


def ellipses(rng: np.random.Generator, size: int) -> Image:
    """Return a body of smooth ellipses within a rim, float32 (size, size), its brightest tissue near 1."""
    y, x = np.ogrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    half_y, half_x = rng.uniform(0.45, 0.75), rng.uniform(0.45, 0.85)
    image = np.zeros((size, size))
    insides = [(0.0, 0.0, half_y, half_x), (0.0, 0.0, *(rng.uniform(0.8, 0.97) * np.array((half_y, half_x))))]
    for _ in range(rng.integers(5, 25)):
        way, far = rng.uniform(0, 6.3), np.sqrt(rng.uniform(0, 0.6))
        halves = np.exp(rng.uniform(np.log(0.02), np.log(0.35), 2))
        insides.append((far * half_y * np.sin(way), far * half_x * np.cos(way), *halves))
    for cy, cx, ry, rx in insides:
        edge = np.clip((1 - np.hypot((y - cy) / ry, (x - cx) / rx)) * min(ry, rx) * size / 2 + 0.5, 0, 1)
        image += edge * (rng.uniform(0.05, 1) - image)
    return np.asarray(image / max(float(np.percentile(image, 99)), 1e-3), np.float32)


@dataclass(frozen=True, eq=False)
class Scene:
    """A patient in a scanner: `truth` (y, x), coils, noise of each part of a sample, acceleration."""

    truth: Image
    coils: Coils
    noise_std: float
    acceleration: int

    @cached_property
    def maps(self) -> Kspace:
        """Sensitivities, (coil, y, x)."""
        return self.coils.maps(*self.truth.shape)

    @cached_property
    def kspace(self) -> Kspace:
        """Without noise, every line."""
        return np.asarray(to_kspace(self.truth * self.maps), np.complex64)

    @property
    def ky(self) -> NDArray[np.int64]:
        """Acquired lines."""
        n_y = self.truth.shape[0]
        return np.arange(n_y // 2 % self.acceleration, n_y, self.acceleration)

    @cached_property
    def _grid(self) -> Grid:
        n_y, n_x = self.truth.shape
        size, fov = (n_x, n_y, 1), (300.0, 300.0, 5.0)
        return Grid.of(Encoding(size, size, fov, fov, self.coils.n, self.acceleration))

    @cached_property
    def _unmixing(self) -> Unmixing:
        return self.calibrate(self.kspace)

    def calibrate(self, full: Kspace) -> Unmixing:
        """Calibrate on `full` (coil, ky, kx)."""
        middle = self.truth.shape[0] // 2
        block = np.arange(middle - N_CALIBRATION // 2, middle + N_CALIBRATION // 2)
        noise = _noise(np.random.default_rng(0), full[:, block].shape, self.noise_std)
        return calibrate_slice(self._grid, full[:, block] + noise, block)

    def image(self, lines: Kspace, unmixing: Unmixing | None = None) -> Image:
        """Reconstruct acquired lines as the appliance does."""
        return magnitude(reconstruct(unmixing or self._unmixing, self._grid, lines, self.ky))


def acquire(scene: Scene, rng: np.random.Generator, fault: str = "", moved: Kspace | None = None) -> Acquired:
    """Return one frame of `scene` with `fault` ("": clean) in it; `moved` stands for the scene's own k-space."""
    full = scene.kspace if moved is None else moved
    if fault in PATIENT:
        full = PATIENT[fault](scene, rng, full)
    lines = np.ascontiguousarray(full[:, scene.ky])
    noise = scene.noise_std
    if fault == "low_snr":
        noise *= rng.uniform(3, 6)
    lines = lines + _noise(rng, lines.shape, noise)
    if fault in RECEIVER:
        lines = RECEIVER[fault](scene, rng, lines)
    own = scene.calibrate(full) if fault == "wrap" else None  # a body that folds over did so in calibration too
    return Acquired(lines, scene.ky, scene.image(lines, own))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Kspace:
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    return np.asarray(np.float32(std) * parts.view(np.complex64)[..., 0])


def _shift(scene: Scene, dy: NDArray[np.float64] | float, dx: NDArray[np.float64] | float) -> Kspace:
    """Phase of a shift in pixels, one or one for each line, (ky, kx)."""
    n_y, n_x = scene.truth.shape
    ky, kx = np.arange(n_y) - n_y // 2, np.arange(n_x) - n_x // 2
    along_y = np.asarray(dy) * ky / n_y
    return np.exp(-2j * np.pi * (along_y[:, None] + np.outer(np.broadcast_to(dx, n_y), kx) / n_x)).astype(np.complex64)


def _plant_ghosting(scene: Scene, rng: np.random.Generator, full: Kspace) -> Kspace:
    """Every second acquired line turned by 0.2 … 0.9 rad: a ghost of 10 … 45 % of the body."""
    phase = np.zeros(full.shape[1])
    phase[scene.ky[1::2]] = rng.uniform(0.2, 0.9) * rng.choice([-1, 1])
    return np.asarray(full * np.exp(1j * phase)[:, None], np.complex64)


def _plant_motion(scene: Scene, rng: np.random.Generator, full: Kspace) -> Kspace:
    """During the frame: breathing of 1.5 … 5 pixels, one jump of 2.5 … 8 pixels, or a turn of 3 … 8 degrees."""
    n_y = full.shape[1]
    kind, when = rng.integers(3), int(n_y * rng.uniform(0.35, 0.6))
    if kind == 0:
        wave = np.sin(np.arange(n_y) * 2 * np.pi / (n_y / rng.uniform(3, 12)) + rng.uniform(0, 6.3))
        return np.asarray(full * _shift(scene, rng.uniform(1.5, 5) * wave, rng.uniform(-1, 1) * wave))
    if kind == 1:
        after, way = np.arange(n_y) >= when, rng.uniform(0, 6.3)
        far = rng.uniform(2.5, 8)
        return np.asarray(full * _shift(scene, far * np.sin(way) * after, far * np.cos(way) * after))
    angle = rng.uniform(3, 8) * rng.choice([-1, 1])
    turned = rotate(scene.truth, angle, reshape=False, order=1)
    mixed = full.copy()
    mixed[:, when:] = to_kspace(turned * scene.maps)[:, when:]
    return mixed


def _plant_wrap(scene: Scene, rng: np.random.Generator, full: Kspace) -> Kspace:
    """The body is 8 … 30 % larger than the field of view along y."""
    n_y, n_x = scene.truth.shape
    rows = np.flatnonzero(scene.truth.max(axis=1) > 0.1)
    factor = min(rng.uniform(1.08, 1.3) * n_y / max(len(rows), 1), 3.0)
    n_large = int(np.ceil(n_y * factor))
    large = zoom(scene.truth, (n_large / n_y, 1), order=1)
    shift = large.shape[0] // 2 - int(rows.mean() * n_large / n_y)
    large = np.roll(large, shift, axis=0)
    whole = large * scene.coils.maps(*large.shape, overflow=large.shape[0] / n_y)
    folded = np.zeros((scene.coils.n, n_y, n_x), np.complex64)
    target = (np.arange(large.shape[0]) - large.shape[0] // 2 + n_y // 2) % n_y
    np.add.at(folded, (slice(None), target), whole)
    return np.asarray(to_kspace(folded), np.complex64)


def _plant_displacement(scene: Scene, rng: np.random.Generator, full: Kspace) -> Kspace:
    """The patient lies 4 … 12 pixels elsewhere."""
    far, way = rng.uniform(4, 12), rng.uniform(0, 6.3)
    dy, dx = far * np.sin(way), far * np.cos(way)
    n_y, n_x = scene.truth.shape
    ky, kx = np.arange(n_y) - n_y // 2, np.arange(n_x) - n_x // 2
    ramp = np.exp(-2j * np.pi * (dy * ky[:, None] / n_y + dx * kx / n_x))
    moved = np.abs(np.asarray(scipy.fft.ifft2(scipy.fft.ifftshift(to_kspace(scene.truth.astype(np.complex64)) * ramp))))
    moved = scipy.fft.fftshift(moved) * np.sqrt(n_y * n_x)
    return np.asarray(to_kspace(moved.astype(np.float32) * scene.maps), np.complex64)


def _plant_signal_drop(scene: Scene, rng: np.random.Generator, full: Kspace) -> Kspace:
    """30 … 65 % of the signal is left."""
    return np.asarray(full * np.float32(rng.uniform(0.3, 0.65)))


def _plant_spike(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """One to three samples of 3 … 50 % of the largest, outside the centre, in all coils alike."""
    lines, largest = lines.copy(), float(np.abs(lines).max())
    _, n_lines, n_x = lines.shape
    for _ in range(rng.integers(1, 4)):
        line, column = rng.integers(n_lines), rng.integers(n_x)
        if abs(line - n_lines // 2) < n_lines // 6 and abs(column - n_x // 2) < n_x // 6:
            line = (line + n_lines // 3) % n_lines
        part = np.exp(rng.uniform(np.log(0.03), np.log(0.5)))
        lines[:, line, column] += part * largest * np.exp(2j * np.pi * rng.uniform(size=len(lines)))
    return lines


def _plant_zipper(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """One frequency, 0.5 … 2 times the noise of a sample, of random phase in each line."""
    n_coils, n_lines, n_x = lines.shape
    wave = np.exp(2j * np.pi * rng.uniform(-0.48, 0.48) * np.arange(n_x))
    phase = np.exp(2j * np.pi * rng.uniform(size=n_lines))
    gains = rng.uniform(0.3, 1, n_coils) * np.exp(2j * np.pi * rng.uniform(size=n_coils))
    strength = rng.uniform(0.5, 2) * scene.noise_std * np.sqrt(2)
    return np.asarray(lines + strength * gains[:, None, None] * phase[:, None] * wave, np.complex64)


def _plant_coil_drop(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """One coil gives nothing, noise, or up to a fifth of its signal."""
    lines, coil = lines.copy(), rng.integers(len(lines))
    left = rng.choice([0.0, rng.uniform(0.02, 0.2)])
    lines[coil] = left * lines[coil] + _noise(rng, lines.shape[1:], scene.noise_std if rng.uniform() < 0.7 else 0)
    return lines


def _plant_noisy_coil(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """One coil has 2.5 … 10 times its noise."""
    lines, coil = lines.copy(), rng.integers(len(lines))
    times = np.sqrt(rng.uniform(2.5, 10) ** 2 - 1)
    lines[coil] += _noise(rng, lines.shape[1:], float(times * scene.noise_std))
    return lines


def _plant_clipping(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """The converter ends at 20 … 60 % of the largest value."""
    parts = lines.view(np.float32)
    rail = np.float32(rng.uniform(0.2, 0.6)) * np.abs(parts).max()
    return np.clip(parts, -rail, rail).view(np.complex64)


def _plant_line_drop(scene: Scene, rng: np.random.Generator, lines: Kspace) -> Kspace:
    """One or two lines of the middle third are noise or nothing, or keep up to 20 % of their signal."""
    lines, n_lines = lines.copy(), lines.shape[1]
    first = n_lines // 2 + int(rng.integers(-(n_lines // 6), n_lines // 6))
    hit = slice(first, first + int(rng.integers(1, 3)))
    left = rng.choice([0.0, rng.uniform(0.0, 0.2)])
    noise = _noise(rng, lines[:, hit].shape, scene.noise_std) if rng.uniform() < 0.6 else 0
    lines[:, hit] = left * lines[:, hit] + noise
    return lines


Plant = Callable[[Scene, np.random.Generator, Kspace], Kspace]

PATIENT: dict[str, Plant] = {
    "ghosting": _plant_ghosting,
    "motion": _plant_motion,
    "wrap": _plant_wrap,
    "displacement": _plant_displacement,
    "signal_drop": _plant_signal_drop,
    "slice_dropout": _plant_signal_drop,
}
RECEIVER: dict[str, Plant] = {
    "spike": _plant_spike,
    "zipper": _plant_zipper,
    "coil_drop": _plant_coil_drop,
    "noisy_coil": _plant_noisy_coil,
    "clipping": _plant_clipping,
    "line_drop": _plant_line_drop,
}
