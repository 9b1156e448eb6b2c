# SPDX-License-Identifier: Apache-2.0
"""One slice from raw 2D Cartesian k-space to the image that the header asks for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import namespace
from appliance.frames import Affine, Array, Encoding
from appliance.mri.combine_coils import estimate_sensitivities, root_sum_of_squares
from appliance.mri.fourier import remove_oversampling, resample, resize_centred, to_image
from appliance.mri.grappa import calibrate, calibration_lines_needed, unmixing_weights
from appliance.mri.partial_fourier import fill_partial_fourier, is_partial, noise_gain
from appliance.mri.prewhiten import prewhiten, prewhitening_matrix
from appliance.mri.unmix import Unmixing, fuse, noise_std, unmix

MAX_CALIBRATION_LINES = 48  # more do not make smooth maps or kernels better, only slower
CENTRE_COLUMNS = 16
SIGNAL_OVER_NOISE = 3.0  # in power; weights from less are worse than none (NRMSE 0.13 to 0.83 on the phantom)
LEAST_COHERENCE = 0.1
MIN_CALIBRATION_LINES = 4  # on each side of the centre


@dataclass(frozen=True)
class Grid:
    """Sizes along y and x, in samples: encoded, of the reconstructed field of view at the encoded resolution, final."""

    n_ky: int
    n_kx: int
    fov_y: int
    fov_x: int
    n_y: int
    n_x: int
    acceleration: int
    ky_shift: int  # what to add to a line number to have the centre of k-space at n_ky // 2

    @classmethod
    def of(cls, encoding: Encoding) -> Grid:
        """Read the header's encoding. Raises ValueError on what is not one 2D slice or makes no sense."""
        n_kx, n_ky, n_kz = encoding.encoded_matrix
        n_x, n_y, n_z = encoding.recon_matrix
        if n_kz > 1 or n_z > 1:
            raise ValueError(f"3D encoding ({n_kz} partitions) is not supported; send 2D slices")
        if min(n_kx, n_ky, n_x, n_y) < 8 or encoding.acceleration_y not in range(1, 5):
            raise ValueError(
                f"matrix {n_kx} × {n_ky} → {n_x} × {n_y} at acceleration {encoding.acceleration_y} is not supported; "
                "use at least 8 samples and an acceleration of 1 to 4"
            )
        scale = np.divide(encoding.recon_fov_mm, encoding.encoded_fov_mm)
        fov = [round(n_kx * scale[0]), round(n_ky * scale[1])]
        if not 8 <= fov[0] <= n_kx or not 8 <= fov[1] <= n_ky:
            raise ValueError(
                f"field of view {encoding.encoded_fov_mm[:2]} mm encoded, {encoding.recon_fov_mm[:2]} mm reconstructed "
                "is not supported; the reconstructed one must lie within the encoded one"
            )
        shift = 0 if encoding.ky_centre is None else n_ky // 2 - encoding.ky_centre
        return cls(n_ky, n_kx, fov[1], fov[0], n_y, n_x, encoding.acceleration_y, shift)

    def index(self, ky: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where lines `ky` lie with the centre of k-space at n_ky // 2. Raises ValueError outside the matrix."""
        index = np.asarray(ky + self.ky_shift)
        if len(index) == 0 or index.min() < 0 or index.max() >= self.n_ky:
            raise ValueError(f"lines {ky.tolist()[:3]} … do not lie within {self.n_ky} encoded lines")
        return index


def imaging_lines(
    index: NDArray[np.int64], calibration_only: NDArray[np.bool_], acceleration: int
) -> NDArray[np.int64]:
    """Return the positions of the lines on the regular pattern: every R-th, not marked as only calibrating."""
    positions = np.flatnonzero(~calibration_only)
    if len(positions) == 0:
        raise ValueError("the frame holds reference lines only; check the flags of its imaging lines")
    residue = index[positions] % acceleration
    return np.asarray(positions[residue == np.bincount(residue).argmax()])


def calibration_run(index: NDArray[np.int64], n_ky: int) -> slice:
    """Return the positions of the consecutive lines (ascending) around the centre of k-space.

    Raises ValueError when fewer than `MIN_CALIBRATION_LINES` on each side of it are there.
    """
    centre = n_ky // 2
    run_id = index - np.arange(len(index))  # constant while lines are consecutive
    at_centre = min(int(np.searchsorted(index, centre)), len(index) - 1)
    near = np.abs(index - centre) <= MAX_CALIBRATION_LINES // 2
    positions = np.flatnonzero((run_id == run_id[at_centre]) & near)
    first, last = (int(p) for p in (positions.min(initial=at_centre), positions.max(initial=at_centre)))
    if min(centre - index[first], index[last] + 1 - centre) < MIN_CALIBRATION_LINES:
        raise ValueError(
            f"{last - first + 1} consecutive lines at the centre line {centre} are too few to calibrate with; "
            "switch on embedded or separate reference lines at the scanner, or set method: rss"
        )
    return slice(first, last + 1)


def calibrate_slice(
    grid: Grid,
    lines: NDArray[np.complex64],
    index: NDArray[np.int64],
    covariance: NDArray[np.complex128] | None = None,
    kernel: tuple[int, int] = (4, 5),
    regularisation: float = 1e-3,
) -> Unmixing:
    """Return the weights of one slice from raw lines (coil, line, kx) that hold a run of consecutive ones.

    With a noise `covariance` the coils are whitened; the image keeps the level of the raw coils' root sum of squares.
    A kernel that spans too many lines is shortened to two. Raises ValueError without signal or with too few
    consecutive lines.
    """
    run = calibration_run(index, grid.n_ky)
    block = remove_oversampling(lines[:, run], grid.fov_x)
    level = float(np.linalg.norm(block))
    if not np.isfinite(level) or level == 0:
        raise ValueError("the calibration lines hold no signal; check coil connection and transmitter")
    whitening = None
    if covariance is not None:
        whitening = prewhitening_matrix(covariance)
        block = prewhiten(block, whitening)
    around_centre = _around_centre(block, grid.n_ky // 2 - int(index[run.start]))
    maps = estimate_sensitivities(around_centre, (grid.n_ky, grid.fov_x))
    if whitening is not None:
        maps *= root_sum_of_squares(prewhiten(maps, np.linalg.inv(whitening)))  # |P s| back to |s|
    if grid.acceleration == 1:
        return fuse(maps.conj(), 1, grid.n_kx, whitening)
    n_lines = kernel[0] if calibration_lines_needed(grid.acceleration, kernel[0]) < block.shape[1] else 2
    fitted = calibrate(block, grid.acceleration, (n_lines, kernel[1]), regularisation)
    return fuse(unmixing_weights(fitted, maps), grid.acceleration, grid.n_kx, whitening)


def require_signal(block: NDArray[np.complex64], covariance: NDArray[np.complex128]) -> None:
    """Raise ValueError unless calibration lines (coil, line, kx) hold more than noise of this covariance.

    Either their centre is stronger than noise, or neighbours along kx agree, which noise's do not (a covariance
    taken from the periphery is too high where an object is as small as a point).
    """
    middle = block.shape[2] // 2
    central = block[:, :, max(middle - CENTRE_COLUMNS // 2, 0) : middle + CENTRE_COLUMNS // 2]
    power = float(np.vdot(central, central).real)
    strong = power > SIGNAL_OVER_NOISE * central[0].size * float(np.trace(covariance).real)
    coherent = abs(np.vdot(central[:, :, 1:], central[:, :, :-1])) > LEAST_COHERENCE * power
    if power == 0 or not (strong or coherent):
        raise ValueError("the calibration lines hold no signal above noise; check coil connection and transmitter")


def _around_centre(block: NDArray[np.complex64], centre: int) -> NDArray[np.complex64]:
    """The part of the run that lies evenly around the centre of k-space, which comes to half its length."""
    half = min(centre, block.shape[1] - centre)
    return block[:, centre - half : centre + half]


def displacement_mm(one: Affine, other: Affine, grid: Grid) -> float:
    """Return how far the corner that moves most lies in `other` from where it lies in `one`."""
    corners = np.array([(0, 0, 0, 1), (grid.n_x, 0, 0, 1), (0, grid.n_y, 0, 1), (grid.n_x, grid.n_y, 0, 1)]).T
    return float(np.linalg.norm(((other - one) @ corners)[:3], axis=0).max())


def reconstruct(unmixing: Unmixing, grid: Grid, lines: Array, index: NDArray[np.int64]) -> Array:
    """Return the combined image, complex64 (y, x) in the header's final size; the input is not modified.

    `lines` is raw k-space (coil, line, kx) of the regular pattern, `index` as given by `Grid.index`.
    """
    image = unmix(unmixing, lines, index)
    first, last = int(index[0]), int(index[-1])
    if is_partial(grid.n_ky, first, last):
        image = fill_partial_fourier(image, first, last)
    image = resize_centred(image, grid.fov_y, 0)
    return resample(resample(image, grid.n_y, 0), grid.n_x, 1)


def noise_map(
    unmixing: Unmixing, grid: Grid, index: NDArray[np.int64], covariance: NDArray[np.complex128]
) -> NDArray[np.float32]:
    """Return the noise's standard deviation in each pixel of `reconstruct`'s magnitude, float32 (y, x)."""
    std = noise_std(unmixing, covariance, len(index))
    first, last = int(index[0]), int(index[-1])
    if is_partial(grid.n_ky, first, last):
        std = std * np.float32(noise_gain(grid.n_ky, first, last))
    std = resize_centred(std, grid.fov_y, 0)
    for axis, n in ((0, grid.n_y), (1, grid.n_x)):
        old = std.shape[axis]
        nearest = ((np.arange(n) - n // 2) * old // n + old // 2) % old
        std = std.take(nearest, axis) * np.float32(np.sqrt(min(1, n / old)))  # cutting k-space cuts its noise
    return np.asarray(std)


def zero_filled(grid: Grid, lines: Array, index: NDArray[np.int64]) -> Array:
    """Return the plain root-sum-of-squares image, float32 (y, x), of all lines given, missing ones as zero.

    Each line counts for the gap that it fills, so the level is that of a fully sampled image.
    """
    xp = namespace(lines)
    gaps = np.gradient(index.astype(np.float32)) if len(index) > 1 else np.ones(1, np.float32)
    kspace = xp.zeros((lines.shape[0], grid.n_ky, grid.n_kx), lines.dtype)
    kspace[:, index] = lines * xp.asarray(np.minimum(gaps, grid.acceleration))[:, None]
    images = resize_centred(resize_centred(to_image(kspace), grid.fov_x, 2), grid.fov_y, 1)
    return root_sum_of_squares(resample(resample(images, grid.n_y, 1), grid.n_x, 2))


def magnitude(image: Array) -> Array:
    """Return |image|, float32."""
    return namespace(image).abs(image)
