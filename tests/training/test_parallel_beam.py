# SPDX-License-Identifier: Apache-2.0
"""Projection and reconstruction against the closed form of an ellipse, scikit-image, real projections and chance."""

from pathlib import Path

import numpy as np
import pytest

from training.parallel_beam import Beam, beam_for, project, reconstruct, reconstructed_variance

TOOTH = Path(__file__).parents[2] / "../shared/data/xray_projections/tooth.h5"
CENTRE, AXES, TILT = (12.0, -9.0), (41.0, 24.0), 0.5  # of an ellipse, pixels from the middle; x first


def ellipse(size, shrink=0.0):
    """The part of each pixel that lies inside, from 4 × 4 samples."""
    fine = (np.arange(4 * size) + 0.5) / 4 - 0.5 - (size - 1) / 2
    y, x = fine[:, None] - CENTRE[1], fine - CENTRE[0]
    u, v = x * np.cos(TILT) + y * np.sin(TILT), y * np.cos(TILT) - x * np.sin(TILT)
    inside = (u / (AXES[0] - shrink)) ** 2 + (v / (AXES[1] - shrink)) ** 2 <= 1
    return inside.reshape(size, 4, size, 4).mean(axis=(1, 3)).astype(np.float32)


def chords(beam):
    """Length of each ray within the ellipse (Kak, Slaney 1988, section 3.1)."""
    angle = beam.angles[:, None]
    t = (np.arange(beam.n_bins) - (beam.n_bins - 1) / 2) * beam.bin_px
    t = t - CENTRE[0] * np.cos(angle) - CENTRE[1] * np.sin(angle)
    reach = (AXES[0] * np.cos(angle - TILT)) ** 2 + (AXES[1] * np.sin(angle - TILT)) ** 2
    return 2 * AXES[0] * AXES[1] * np.sqrt(np.maximum(reach - t**2, 0)) / reach


@pytest.mark.parametrize(("size", "bin_px"), [(128, 1.0), (131, 1.4)])
def test_line_integrals_are_those_of_the_closed_form(size, bin_px):
    beam = beam_for(size, 90, bin_px)
    error = project(ellipse(size), beam) - chords(beam)
    assert np.sqrt(np.mean(error**2)) < 0.005 * 2 * AXES[0]  # pixels at the edge are partly inside
    assert abs(error.mean()) < 1e-3 * chords(beam).mean()


@pytest.mark.parametrize("size", [128, 131])
def test_what_was_projected_comes_back(size):
    beam = beam_for(size, 360, hann=0.0)
    image = reconstruct(chords(beam).astype(np.float32), beam, size)
    inside, outside = ellipse(size, 4) == 1, ellipse(size, -4) == 0
    assert image[inside].mean() == pytest.approx(1, abs=1e-3)
    assert np.abs(image[inside] - 1).max() < 0.05  # the ramp filter rings at edges
    assert abs(image[outside].mean()) < 2e-3
    assert image.dtype == np.float32


def test_the_peer_reconstructs_the_same():
    from skimage.transform import iradon

    beam = beam_for(128, 180, hann=0.0)
    sinogram = chords(beam).astype(np.float32)
    peer = iradon(sinogram.T, -np.degrees(beam.angles), output_size=128, filter_name="ramp", circle=False)
    ours, truth = reconstruct(sinogram, beam, 128), ellipse(128)
    shifted = min(
        np.abs(np.roll(peer, shift, (0, 1)) - truth).mean() for shift in ((0, 0), (1, 0), (0, 1), (1, 1))
    )  # its centre is a pixel's
    assert np.abs(ours - truth).mean() <= shifted


@pytest.mark.parametrize(("bin_px", "cutoff", "hann"), [(1.0, 1.0, 1.0), (1.4, 0.8, 0.5)])
def test_the_variance_of_noise_is_as_predicted(bin_px, cutoff, hann):
    beam = beam_for(64, 120, bin_px, cutoff, hann)
    variance = np.broadcast_to(np.linspace(0.5, 2, beam.n_bins, dtype=np.float32), (120, beam.n_bins))
    rng = np.random.default_rng(0)
    squares = [
        reconstruct((rng.standard_normal(variance.shape) * np.sqrt(variance)).astype(np.float32), beam, 64) ** 2
        for _ in range(40)
    ]
    predicted = reconstructed_variance(np.ascontiguousarray(variance), beam, 64)
    found = np.mean(squares, axis=0)
    for half in (np.s_[:32], np.s_[32:]):  # 80,000 correlated values: 1 %
        assert found[half].mean() == pytest.approx(predicted[half].mean(), rel=0.04)


def test_real_projections_of_a_tooth_give_a_tooth():
    if not TOOTH.exists():
        pytest.skip(f"no {TOOTH}")
    h5py = pytest.importorskip("h5py")
    beam = Beam(181, 640)
    with h5py.File(TOOTH) as file:
        data, white, dark = (file[f"exchange/{name}"][:, 0] for name in ("data", "data_white", "data_dark"))
        assert np.allclose(file["exchange/theta"][:], np.degrees(beam.angles), atol=1e-3)
    transmitted = (data - dark.mean(axis=0)) / (white.mean(axis=0) - dark.mean(axis=0))
    sinogram = -np.log(np.maximum(transmitted, 1e-3)).astype(np.float32)
    opposite = sinogram[180, ::-1]  # where the axis is: a view and the opposite one are mirror images
    lag = int(np.correlate(sinogram[0] - sinogram[0].mean(), opposite - opposite.mean(), "full").argmax()) - 639
    sinogram = np.roll(sinogram, -round(lag / 2), axis=1)
    image = reconstruct(sinogram, beam, 640)
    y, x = np.ogrid[-1:1:640j, -1:1:640j]
    tooth = image > 0.5 * np.percentile(image, 99)
    assert 0.05 < tooth.mean() < 0.5
    assert tooth[np.hypot(y, x) > 0.95].mean() < 0.02  # air around it
    # projected again, it is what was measured
    again = project(np.where(np.hypot(y, x) < 0.99, image, 0), beam)
    assert np.corrcoef(again.ravel(), sinogram.ravel())[0, 1] > 0.99
