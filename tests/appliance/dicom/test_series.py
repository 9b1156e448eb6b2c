# SPDX-License-Identifier: Apache-2.0
"""When a series is complete, and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dicom.series import Came, Image, Report, completion, n_expected

MR, CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"
OPEN = [Came(5, released=False)]


def images(n, sop_class=MR, **attributes):
    return [Image(sop_class, f"1.2.{i}", {key: str(value) for key, value in attributes.items()}) for i in range(n)]


def cine(order):
    """Images of (slice, time) in this order, of a series with ten temporal positions."""
    return [
        Image(MR, f"1.2.{z}.{t}", {"NumberOfTemporalPositions": "10", "ImagePositionPatient": rf"0\0\{z}", "n": str(t)})
        for z, t in order
    ]


def because(images, came=OPEN, report=None, silent_s=0.0):
    return completion(images, came, report, silent_s, 60.0)


@pytest.mark.parametrize(
    ("given_images", "expected"),
    [
        (images(3), 0),
        ([], 0),
        (images(3, ImagesInAcquisition=28), 28),
        (images(3, ImagesInAcquisition=15, NumberOfTemporalPositions=10), 150),  # a GE fMRI of nih_ge_siemens
        (images(1, ENHANCED_MR), 1),
        (images(1, ENHANCED_MR, InConcatenationTotalNumber=4), 4),
        (images(1, ENHANCED_MR, NumberOfTemporalPositions=21, NumberOfFrames=39), 21),  # one volume an object: XA30
        (images(2, ImagesInAcquisition="-1"), 0),
        (images(2, ImagesInAcquisition="1e9"), 0),
        (images(2, ImagesInAcquisition="99999999999999999"), 0),
        (images(2, ImagesInAcquisition="\u00b2"), 0),
    ],
)
def test_what_they_say_of_their_number(given_images, expected):
    assert n_expected(given_images) == expected


def test_each_acquisition_counts_its_own_images():
    both = images(2, ImagesInAcquisition=20, AcquisitionNumber=1) + images(
        1, ImagesInAcquisition=8, AcquisitionNumber=2
    )
    assert n_expected(both) == 28
    assert n_expected([*both, *images(1, AcquisitionNumber=3)]) == 0, "one does not say"


def test_times_by_slices_is_known_once_the_first_volume_is_over():
    volumes = cine([(z, t) for t in range(10) for z in range(4)])
    assert [n_expected(volumes[:n]) for n in (1, 3, 4, 5, 40)] == [0, 0, 0, 40, 40]


def test_slice_by_slice_nobody_can_know():
    slices = cine([(z, t) for z in range(4) for t in range(10)])
    assert {n_expected(slices[:n]) for n in range(41)} == {0}


def test_mpps_goes_first_and_waits_for_what_it_names():
    some = images(3, ImagesInAcquisition=3)
    report = Report("COMPLETED", ["1.2.0", "1.2.1", "1.2.2"])
    assert because(some, report=report) == "MPPS completed: all its 3 images are here"
    assert because(some, report=Report("DISCONTINUED", ["1.2.0"])) == "MPPS discontinued: all its 1 images are here"
    late = Report("COMPLETED", ["1.2.0", "1.2.9"])
    released = [Came(3, released=True)]
    assert because(some, released, late) == "", "neither the count nor the association knows better"
    assert because(some, released, late, 60.0) == "silence: nothing came for 60 s, 1 images of the MPPS are missing"


@pytest.mark.parametrize("report", [None, Report("IN PROGRESS", ["1.2.0"]), Report("COMPLETED", [])])
def test_without_a_finished_report_the_count_decides(report):
    assert because(images(3, ImagesInAcquisition=3), report=report) == "expected count: 3 of 3 instances are here"
    assert because(images(2, ImagesInAcquisition=3), report=report) == ""


def test_the_end_of_the_association():
    assert because(images(5), [Came(5, released=True)]) == "association released after 5 instances"
    said = "association released after 2 instances, 3 were expected"
    assert because(images(2, ImagesInAcquisition=3), [Came(2, released=True)]) == said
    assert because(images(5), [Came(4, released=True), Came(1, released=False)]) == "", "the other goes on, or broke"
    assert because(images(5), [Came(4, released=True), Came(1, released=True)]) != ""


def test_senders_with_an_association_for_each_image_wait_for_silence():
    assert because(images(4), [Came(1, released=True)] * 4, silent_s=59.9) == ""
    assert because(images(4), [Came(1, released=True)] * 4, silent_s=60) == "silence: nothing came for 60 s"


def test_silence_says_what_is_lacking():
    assert because(images(2, ImagesInAcquisition=3), silent_s=61) == (
        "silence: nothing came for 60 s, 3 instances were expected"
    )
    assert because([], silent_s=1e9) == ""


@given(
    st.lists(st.dictionaries(st.sampled_from(["ImagesInAcquisition", "NumberOfTemporalPositions"]), st.text())),
    st.floats(0, 200),
)
def test_whatever_they_say_silence_ends_it(said, silent_s):
    some = [Image(MR, str(n), one) for n, one in enumerate(said)]
    reason = because(some, silent_s=silent_s)
    if some and silent_s >= 60:
        assert reason
    if not some:
        assert not reason
