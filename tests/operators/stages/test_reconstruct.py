# SPDX-License-Identifier: Apache-2.0
"""The reconstruct stage: scan by scan, frame by frame, and on the real slice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from appliance.context import Context
from appliance.errors import StageError
from appliance.frames import Encoding, Frame, Position, Scan, read_only
from appliance.mrd.geometry import image_affine
from appliance.mri.phantom import NOISE_STD, cine_image, cine_kspace, noise_samples
from operators.stages.reconstruct import Reconstruct, Settings, make

DATA = Path("../shared/data/mrd")
EMBEDDED = np.union1d(np.arange(0, 96, 2), np.arange(36, 60))


def scan(size: tuple[int, int] = (96, 96), acceleration: int = 2, **encoding: object) -> Scan:
    """`size` is (x, y)."""
    fov = (300.0, 300.0, 5.0)
    described = Encoding((*size, 1), (*size, 1), fov, fov, 8, acceleration, "embedded")
    described = replace(described, **encoding)
    axes = ("coil", "ky", "kx")
    return Scan("scan-1", "MR", axes, (8, None, size[0]), "complex64", 0, encoding=described)


def frame(kspace: np.ndarray, ky: np.ndarray, acceleration: int = 2, **fields: object) -> Frame:
    """A frame of the lines `ky` of the fully sampled `kspace`."""
    attachments = {"ky": read_only(ky), "calibration_only": read_only(ky % acceleration != ky[0] % acceleration)}
    start = Frame(
        scan_id="scan-1",
        sequence=0,
        array=read_only(np.ascontiguousarray(kspace[:, ky])),
        axes=("coil", "ky", "kx"),
        affine=np.diag([3.0, 3.0, 5.0, 1.0]),
        acquired_ns=0,
        received_ns=0,
        attachments=attachments,
    )
    return replace(start, **fields)


def begun(described: Scan | None = None, **settings: object) -> Reconstruct:
    stage = make(Settings(**settings), Context("test", Path(), Path()))
    stage.begin(described or scan())
    return stage


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))


KSPACE = read_only(cine_kspace(0, (96, 96), noise_std=0.005))
TRUTH = cine_image(0, (96, 96))


def test_begin_declares_the_image() -> None:
    stage = make(Settings(), Context("test", Path(), Path()))
    out = stage.begin(scan((128, 96), recon_matrix=(64, 48, 1)))
    assert (out.axes, out.shape, out.dtype) == (("y", "x"), (48, 64), "float32")


def test_an_embedded_frame_becomes_an_image_that_keeps_what_it_came_from() -> None:
    stage, given = begun(), frame(KSPACE, EMBEDDED)
    before = given.array.copy()
    out = stage.frame(given)
    assert out.array.dtype == np.float32 and out.axes == ("y", "x") and not out.array.flags.writeable
    assert nrmse(out.array, TRUTH) < 0.05
    assert out.attachments["kspace"] is given.array and out.attachments["ky"] is given.attachments["ky"]
    assert out.sequence == given.sequence and out.affine is given.affine
    np.testing.assert_array_equal(given.array, before)
    noise = out.attachments["noise_map"]
    assert noise.dtype == np.float32 and noise.shape == (96, 96) and not noise.flags.writeable
    assert np.median(noise) == pytest.approx(np.std((out.array - TRUTH)[TRUTH > 0.4]), rel=0.3)


def test_weights_are_computed_once_for_each_slice_position() -> None:
    stage = begun()
    outs = [stage.frame(frame(KSPACE, EMBEDDED, sequence=i)) for i in range(3)]
    assert stage.status() == {"method": "grappa", "calibrations": 1, "slices": 1}
    assert outs[0].attachments["noise_map"] is outs[2].attachments["noise_map"]
    stage.frame(frame(KSPACE, np.arange(1, 96, 2)))  # the other half of the lines, no reference lines: same weights
    assert stage.status()["calibrations"] == 1
    stage.frame(frame(KSPACE, EMBEDDED, position=Position(slice=1)))
    assert stage.status() == {"method": "grappa", "calibrations": 2, "slices": 2}
    moved = np.diag([3.0, 3.0, 5.0, 1.0])
    moved[2, 3] = 20
    stage.frame(frame(KSPACE, EMBEDDED, affine=moved))
    assert stage.status()["calibrations"] == 3
    assert list(stage.end()) == []


def test_separate_reference_lines_give_what_embedded_ones_give() -> None:
    lines = frame(KSPACE, np.arange(36, 61), role="calibration", sequence=-1)  # 60 adjoins the embedded ones
    separate = begun(scan(calibration="separate"))
    separate.prepare(lines)
    assert separate.status()["calibrations"] == 1
    out = separate.frame(frame(KSPACE, np.arange(0, 96, 2)))
    np.testing.assert_allclose(out.array, begun().frame(frame(KSPACE, EMBEDDED)).array, atol=1e-5)
    assert separate.status()["calibrations"] == 1


def test_a_noise_measurement_whitens() -> None:
    """One coil with ten times the noise of the others."""
    gain = np.ones((8, 1, 1), np.float32)
    gain[2] = 10
    noisy = cine_kspace(0, (96, 96), noise_std=0) + gain * noise_samples((8, 96, 96), NOISE_STD)
    plain, white = begun(), begun()
    white.prepare(frame(gain * noise_samples((8, 16, 96), NOISE_STD, seed=5), np.arange(16), role="noise"))
    errors = [nrmse(stage.frame(frame(noisy, EMBEDDED)).array, TRUTH) for stage in (plain, white)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("change", [{"acceleration": 1}, {"calibration": "none"}])
def test_no_reference_lines(change: dict) -> None:
    """Fully sampled data need none; undersampled data do, and the text says what to do."""
    if change.get("acceleration") == 1:
        out = begun(scan(acceleration=1)).frame(frame(KSPACE, np.arange(96), acceleration=1))
        assert nrmse(out.array, TRUTH) < 0.03
        return
    stage, given = begun(scan(**change)), frame(KSPACE, np.arange(0, 96, 2))
    text = (
        "reconstruct: 1 consecutive lines at the centre line 48 are too few to calibrate with; switch on embedded or "
        "separate reference lines at the scanner, or set method: rss"
    )
    with pytest.raises(StageError, match=text) as caught:
        stage.frame(given)
    assert caught.value.scan_id == "scan-1"
    folded = stage.fallback(given)
    assert folded.array.dtype == np.float32 and folded.array.shape == (96, 96)
    stage.frame(frame(KSPACE, EMBEDDED))  # a later frame that brings them is unfolded


def test_calibration_that_failed_is_tried_again() -> None:
    stage = begun()
    with pytest.raises(StageError, match="hold no signal above noise; check coil connection and transmitter"):
        stage.frame(frame(np.zeros_like(KSPACE), EMBEDDED))
    assert nrmse(stage.frame(frame(KSPACE, EMBEDDED)).array, TRUTH) < 0.05


def test_rss_is_plain() -> None:
    stage = begun(method="rss")
    out = stage.frame(frame(KSPACE, np.arange(0, 96, 2)))
    np.testing.assert_array_equal(out.array, stage.fallback(frame(KSPACE, np.arange(0, 96, 2))).array)
    assert nrmse(out.array, TRUTH) > 0.3


def test_a_missing_line_is_taken_as_zero() -> None:
    stage = begun()
    stage.frame(frame(KSPACE, EMBEDDED))
    out = stage.frame(frame(KSPACE, np.delete(np.arange(0, 96, 2), 10)))
    assert nrmse(out.array, TRUTH) < 0.1


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            replace(scan(), axes=("y", "x")),
            r"expected raw k-space \(coil, ky, kx\), got \(y, x\); take reconstruct out",
        ),
        (
            scan(encoded_matrix=(96, 96, 8)),
            r"reconstruct: 3D encoding \(8 partitions\) is not supported; send 2D slices",
        ),
        (scan(acceleration=6), "use at least 8 samples and an acceleration of 1 to 4"),
    ],
)
def test_begin_refuses(wrong: Scan, text: str) -> None:
    with pytest.raises(StageError, match=text):
        make(Settings(), Context("test", Path(), Path())).begin(wrong)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (frame(KSPACE[:, :, :80], EMBEDDED), r"k-space of shape \(8, 60, 80\) does not fit"),
        (replace(frame(KSPACE, EMBEDDED), attachments={"ky": EMBEDDED + 90}), "do not lie within 96 encoded lines"),
    ],
)
def test_a_frame_that_does_not_fit_is_told(given: Frame, text: str) -> None:
    with pytest.raises(StageError, match=text):
        begun().frame(given)


@pytest.mark.parametrize("matrix", [(64, 48), (63, 47), (64, 47), (63, 48)])  # (x, y)
@pytest.mark.parametrize("enlarged", [False, True])
def test_a_point_lands_on_the_pixel_that_the_affine_gives_its_place(matrix: tuple[int, int], enlarged: bool) -> None:
    """The signal equation written out for a point at a place in mm; oversampled readout; centre at n // 2."""
    n_x, n_y = matrix
    fov, centre = (256.0, 192.0, 5.0), np.array([10.0, -20.0, 30.0])
    read, phase, normal = np.array([0, 1.0, 0]), np.array([0, 0, -1.0]), np.array([-1.0, 0, 0])
    final = (2 * n_x, 2 * n_y, 1) if enlarged else (n_x, n_y, 1)
    affine = image_affine(centre, read, phase, normal, fov, final)
    x, y = final[0] // 2 + 6, final[1] // 2 - 10
    place = (affine @ (x, y, 0, 1))[:3]
    along = (place - centre) @ np.stack([read, phase], 1) / fov[:2]  # in fields of view
    ky, kx = np.arange(n_y) - n_y // 2, np.arange(2 * n_x) - n_x
    kspace = np.exp(-2j * np.pi * (ky[:, None] * along[1] + kx * along[0] / 2)).astype(np.complex64)
    described = scan((2 * n_x, n_y), 1, encoded_fov_mm=(512.0, 192.0, 5.0), recon_fov_mm=fov, recon_matrix=final)
    out = begun(described).frame(frame(np.repeat(kspace[None], 8, 0), np.arange(n_y), 1, affine=affine))
    assert np.unravel_index(out.array.argmax(), out.array.shape) == (y, x)


def read_lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k-space (coil, ky, kx) of the file's lines, ascending, their numbers, and whether they only calibrate."""
    ismrmrd = pytest.importorskip("ismrmrd")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    dataset = ismrmrd.Dataset(str(path), "dataset", mode="r")
    lines = [dataset.read_acquisition(i) for i in range(dataset.number_of_acquisitions())]
    dataset.close()
    lines.sort(key=lambda line: line.idx.kspace_encode_step_1)
    only = [bool(line.flags & (1 << (ismrmrd.ACQ_IS_PARALLEL_CALIBRATION - 1))) for line in lines]
    ky = np.array([line.idx.kspace_encode_step_1 for line in lines])
    return np.stack([line.data for line in lines], axis=1), ky, np.array(only)


def test_real_slice_agrees_with_the_fully_sampled_one() -> None:
    """Both through this stage, so both combined with maps from their central lines; magnitudes, not rescaled."""
    kspace, ky, only = read_lines(DATA / "brain8ch_semireal_R2_acs24.h5")
    full, full_ky, _ = read_lines(DATA / "brain8ch_semireal_full.h5")
    assert len(ky) == 102 and only.sum() == 12
    size, fov = (230, 180), (230.0, 180.0, 5.0)
    given = frame(np.zeros((8, 180, 230), np.complex64), ky)
    attachments = {"ky": ky, "calibration_only": only}
    given = replace(given, array=read_only(kspace), attachments=attachments)
    stage = begun(scan(size, encoded_fov_mm=fov, recon_fov_mm=fov))
    image = stage.frame(given).array
    reference = begun(scan(size, 1, encoded_fov_mm=fov, recon_fov_mm=fov)).frame(frame(full, full_ky, 1)).array
    difference = np.abs(image - reference)
    assert nrmse(image, reference) <= 0.039  # zero-filled 0.117, pygrappa 0.039 with the same maps
    assert gaussian_filter(difference, 2).max() / reference.max() <= 0.015  # zero-filled 0.111
    plain = np.sqrt((np.abs(np.fft.ifft2(np.fft.ifftshift(full, axes=(1, 2)), norm="ortho")) ** 2).sum(0))
    plain = np.fft.fftshift(plain)  # and the reference is the slice that an independent combination shows
    tissue = plain > 0.2 * plain.max()
    assert nrmse(reference[tissue], plain[tissue]) < 0.02
    assert nrmse(stage.fallback(given).array, reference) > 0.09


def test_a_first_frame_of_noise_decides_no_weights_and_the_next_one_does() -> None:
    from appliance.mri.reconstruct import require_signal

    noise = noise_samples((4, 24, 64), 0.02)
    covariance = np.eye(4) * 2 * 0.02**2
    with pytest.raises(ValueError, match="no signal above noise"):
        require_signal(noise, covariance)
    require_signal(cine_kspace(0, (64, 64), 4)[:, 20:44], covariance)
    require_signal(np.ones((4, 24, 64), np.complex64), np.eye(4) * 10)  # a point at the centre is no noise
