# SPDX-License-Identifier: Apache-2.0
"""Faults of CT that were planted in the projections are found where they are; clean slices are silent."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from appliance.ct.faults import CtFaults
from appliance.ct.rings import strongest_ring
from appliance.faults.detector import default_thresholds
from appliance.frames import Frame, Scan
from training import ct_faults
from training.dicom_slices import dicom_slices
from training.low_dose_ct import hu_phantom
from training.parallel_beam import beam_for

SERIES = Path(__file__).parents[4] / "shared" / "data" / "series"
SIZE = 256
FIRST = 7  # bodies that nothing was tuned on


def detector(scan=None, **thresholds):
    made = CtFaults(default_thresholds(CtFaults.RULES) | thresholds)
    made.begin(scan or Scan("s", "CT", ("y", "x"), (None, None), "float32", 0))
    return made


def frame(image, **more):
    return Frame(
        scan_id="s", sequence=0, array=image, axes=("y", "x"), affine=np.eye(4), acquired_ns=0, received_ns=0, **more
    )


@pytest.fixture(scope="module")
def bodies():
    """Slices of dead leaves, as a scan of some dose and kernel shows them."""
    scans = []
    for number in range(FIRST, FIRST + 2):
        rng = np.random.default_rng([71, number])
        beam = beam_for(SIZE, 720, rng.uniform(0.8, 1.2), 1.0, rng.uniform(0.2, 1.0))
        scans.append(ct_faults.scan(rng, hu_phantom(rng, SIZE), beam, 1.0, 8.0))
        scans[-1].image.flags.writeable = False
    return scans


def distance(finding, where):
    if "radius_px" in finding.where:
        return abs(finding.where["radius_px"] - abs(where))  # a turn shows it on both sides
    return abs((finding.where["angle_degrees"] - where + 90) % 180 - 90)


NEAR = {"rings": 1.5, "streaks": 15.0, "missing_views": 4.0, "tube_arcing": 1.0}  # pixels; degrees, by their extent
WORDS = {
    "rings": "calibrate the detector with an air scan",
    "streaks": "raise the dose, or move arms and metal out of the beam",
    "missing_views": "repeat the scan",
    "tube_arcing": "call service if it comes back",
}


def test_clean_slices_are_silent_and_everything_was_checked(bodies):
    for scanned in bodies:
        judging = detector()
        assert judging.judge(frame(scanned.image)) == []
        assert (judging.measured.keys(), judging.unchecked) == (CtFaults.RULES.keys(), [])


@pytest.mark.parametrize("kind", ct_faults.KINDS)
def test_a_planted_fault_is_found_where_it_is(bodies, kind):
    for number, scanned in enumerate(bodies):
        planted = ct_faults.plant(np.random.default_rng([72, number]), kind, scanned)
        found = {finding.kind: finding for finding in detector().judge(frame(planted.image))}
        assert kind in found
        assert distance(found[kind], planted.where) < NEAR[kind]
        assert found[kind].measured > found[kind].threshold == CtFaults.RULES[kind].default
        assert (found[kind].severity, WORDS[kind] in found[kind].message) == ("warning", True)


@pytest.mark.parametrize("name", ["ct_head_ge", "ct_phantom_philips_S2010", "ct_phantom_philips_S3010"])
def test_real_slices_are_silent(name):
    archive = SERIES / f"{name}.tar.xz"
    if not archive.exists():
        pytest.skip(f"{archive} is absent")
    judging = detector()
    found = [judging.judge(frame(image)) for image in dicom_slices(archive)[::4]]
    assert not any(found)


@pytest.mark.parametrize("radius", [20, 61])
@pytest.mark.parametrize("height_hu", [-30.0, 30.0])
def test_a_ring_is_measured(height_hu, radius):
    size, rng = 201, np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    image = rng.normal(40, 10, (size, size)).astype(np.float32)
    image += np.float32(height_hu) * (np.abs(np.hypot(y, x) - radius) < 1)
    ring = strongest_ring(image)
    assert abs(ring.radius_px - radius) <= 1
    assert ring.height_hu == pytest.approx(height_hu, rel=0.25)  # the middle of some hundred points, noise 10 HU
    assert ring.agreement > 0.5


def test_a_cylinder_that_is_not_in_the_centre_is_no_ring():
    size = 256
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    body = np.where(np.hypot(y - 9, x + 14) < 80, 40, -1000) + np.random.default_rng(0).normal(0, 8, (size, size))
    judging = detector()
    assert "rings" not in [finding.kind for finding in judging.judge(frame(body.astype(np.float32)))]


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_the_dtype_does_not_matter_and_the_image_stays_as_it_was(bodies, dtype):
    image = np.rint(bodies[0].image).astype(dtype)
    before, judging = image.copy(), detector()
    judging.judge(frame(image))
    assert np.array_equal(image, before)
    reference = detector()
    reference.judge(frame(np.rint(bodies[0].image)))
    assert judging.measured == reference.measured


def test_the_image_before_denoising_is_the_one_that_is_judged(bodies):
    planted = ct_faults.plant(np.random.default_rng(3), "rings", bodies[0])
    given = dataclasses.replace(frame(bodies[0].image), original=planted.image)
    assert [finding.kind for finding in detector().judge(given)] == ["rings"]


def test_numbers_that_are_none_and_empty_images_are_alarms(bodies):
    image = bodies[0].image.copy()
    image[3, 4] = np.nan
    (finding,) = detector().judge(frame(image))
    assert (finding.kind, finding.severity) == ("not_finite", "alarm")
    assert finding.message == "1 pixels are not numbers; do not use this image"
    judging = detector()
    (finding,) = judging.judge(frame(np.full((256, 256), -1024, np.int16)))
    assert (finding.kind, finding.severity) == ("all_zero", "alarm")
    assert (judging.measured, judging.unchecked) == ({}, list(CtFaults.RULES))


@pytest.mark.parametrize("shape", [(1, 1), (90, 300), (200, 200)])
def test_what_is_too_small_is_not_checked(shape):
    judging = detector()
    assert judging.judge(frame(np.random.default_rng(0).normal(0, 9, shape).astype(np.float32)))[1:] == []
    assert judging.unchecked == list(CtFaults.RULES)


@pytest.mark.parametrize("image_type", [("ORIGINAL", "PRIMARY", "LOCALIZER"), ("DERIVED", "SECONDARY", "OTHER")])
def test_scouts_and_reports_are_not_judged_but_their_numbers_are(bodies, image_type):
    scan = Scan("s", "CT", ("y", "x"), (None, None), "float32", 0, attributes={"image_type": image_type})
    judging, ringed = detector(scan), ct_faults.plant(np.random.default_rng(3), "rings", bodies[0]).image
    assert (judging.judge(frame(ringed)), judging.unchecked) == ([], list(CtFaults.RULES))
    assert [finding.kind for finding in judging.judge(frame(ringed * np.nan))] == ["not_finite"]


@pytest.mark.parametrize("axes", [("z", "y", "x"), ("y", "x", "colour")])
def test_volumes_and_colour_are_refused(axes):
    with pytest.raises(ValueError, match=r"expected CT images \(y, x\), got \(.*\); put it before volume stages"):
        detector(Scan("s", "CT", axes, (None,) * 3, "float32", 0))
