# SPDX-License-Identifier: Apache-2.0
"""MR objects: valid by dciodvfy, geometry by independent arithmetic, pixels exact, nothing said that is not so."""

import subprocess
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite

from appliance.dicom.mr_image import geometry, instances
from appliance.dicom.spool import pack, unpack
from appliance.dicom.uids import is_uid
from appliance.errors import PeerError
from appliance.frames import Identity

OBLIQUE_ROW = np.array([0.8, 0.36, -0.48])
OBLIQUE_COLUMN = np.array([0.0, 0.8, 0.6])


def build(spooled):
    """As the deliverer does: through the job and back."""
    job = pack(spooled, 5)
    return instances(unpack(job.meta, job.payload), job.priority)


def read(instance):
    return dcmread(BytesIO(instance.data))


def dciodvfy(instance, tmp_path):
    path = tmp_path / "object.dcm"
    path.write_bytes(instance.data)
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=30, check=False)
    assert "MRImage" in done.stderr + done.stdout
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def cases(make_spooled, marked, identity):
    oblique = np.eye(4)
    oblique[:3, 0], oblique[:3, 1] = OBLIQUE_ROW * 1.25, OBLIQUE_COLUMN * 2.5
    oblique[:3, 2] = np.cross(OBLIQUE_ROW, OBLIQUE_COLUMN) * 6
    oblique[:3, 3] = (-100.123456789012, 1 / 3, 2e-7)
    return {
        "both series": make_spooled(),
        "denoised only": make_spooled(series=("denoised",)),
        "marked": marked,
        "odd sizes": make_spooled(shape=(47, 31)),
        "one pixel": make_spooled(shape=(1, 1)),
        "oblique": make_spooled(3, affine=oblique),
        "no identity": make_spooled(identity=Identity()),
        "no encoding": make_spooled(encoding=None),
        "hostile identity": make_spooled(
            identity=replace(
                identity,
                patient_name="A\\B=C=D=E^1^2^3^4^5^6" * 9,
                patient_id="x\n" * 90,
                birth_date="31.12.1960",
                sex="female",
                accession_number="1234567890123456789",
                study_instance_uid="1.02.3",
                frame_of_reference_uid="abc",
                study_date="2024-02-29",
                study_time="25:00:00",
            )
        ),
    }


CASES = (
    *("both series", "denoised only", "marked", "odd sizes", "one pixel"),
    *("oblique", "no identity", "no encoding", "hostile identity"),
)


@pytest.mark.peer
@pytest.mark.parametrize("case", CASES)
def test_dciodvfy_reports_no_error(case, make_spooled, marked, identity, tmp_path):
    built = build(cases(make_spooled, marked, identity)[case])
    assert built
    for instance in built:
        assert dciodvfy(instance, tmp_path) == []


@pytest.mark.peer
def test_dciodvfy_would_report_an_error(make_spooled, tmp_path):
    ds = read(build(make_spooled())[0])
    del ds.SOPInstanceUID
    file = BytesIO()
    ds.save_as(file)
    assert dciodvfy(replace(build(make_spooled())[0], data=file.getvalue()), tmp_path)


def test_pixels_are_the_images_times_the_scale(make_spooled):
    spooled = make_spooled(4, shape=(47, 31))
    reconstructed, denoised = (read(instance) for instance in build(spooled))
    for ds, source in ((reconstructed, spooled.frame.original), (denoised, spooled.frame.array)):
        stored = np.frombuffer(ds.PixelData[: 2 * 47 * 31], "<u2").reshape(47, 31)
        np.testing.assert_array_equal(stored, np.rint(source * np.float32(1000)).astype(np.uint16))
        assert (ds.Rows, ds.Columns) == (47, 31)
        assert (float(ds.WindowCenter), float(ds.WindowWidth)) == (500.0, 800.0)


@pytest.mark.parametrize("origin", [(-160.0, -240.0, 12.5), (0.125, -7.0, 1e-5)])
def test_geometry_places_every_voxel_where_the_affine_does(origin, make_spooled):
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = OBLIQUE_ROW * 1.25, OBLIQUE_COLUMN * 2.5
    matrix[:3, 2], matrix[:3, 3] = np.cross(OBLIQUE_ROW, OBLIQUE_COLUMN) * 6, origin
    ds = read(build(make_spooled(affine=matrix))[0])
    position, spacing = np.array(ds.ImagePositionPatient, float), np.array(ds.PixelSpacing, float)
    row, column = np.array(ds.ImageOrientationPatient, float).reshape(2, 3)
    for x, y in ((0, 0), (31, 0), (0, 47), (17, 5)):  # PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1
        standard = position + row * spacing[1] * x + column * spacing[0] * y
        np.testing.assert_allclose(standard, (matrix @ (x, y, 0, 1))[:3], atol=1e-6)
    assert float(ds.SliceThickness) == pytest.approx(6)


@pytest.mark.parametrize(
    ("column", "text"), [((1, 1, 0), "not orthogonal"), ((0, 0, 0), "not orthogonal"), ((0, np.nan, 0), "not finite")]
)
def test_a_geometry_that_is_none_is_refused(column, text):
    matrix = np.diag([2.0, 2.0, 5.0, 1.0])
    matrix[:3, 1] = column
    with pytest.raises(PeerError, match=text):
        geometry(matrix)


def test_series_belong_together_and_the_denoised_names_its_source(make_spooled, identity):
    reconstructed, denoised = (read(instance) for instance in build(make_spooled()))
    for ds in (reconstructed, denoised):
        assert ds.StudyInstanceUID == identity.study_instance_uid
        assert ds.FrameOfReferenceUID == identity.frame_of_reference_uid
        assert str(ds.PatientName) == "Muster^Erika"
    assert list(reconstructed.ImageType[:2]) == ["ORIGINAL", "PRIMARY"]
    assert list(denoised.ImageType[:2]) == ["DERIVED", "PRIMARY"]
    assert denoised.SourceImageSequence[0].ReferencedSOPInstanceUID == reconstructed.SOPInstanceUID
    assert reconstructed.SeriesInstanceUID != denoised.SeriesInstanceUID
    assert "SourceImageSequence" not in reconstructed
    assert [item.ManufacturerModelName for item in reconstructed.ContributingEquipmentSequence] == [
        "nearscan",
        "reconstruct",
    ]
    steps = denoised.ContributingEquipmentSequence
    assert [item.ManufacturerModelName for item in steps] == ["nearscan", "reconstruct", "denoise", "detect_anomalies"]
    assert "mr-denoise" in steps[2].SoftwareVersions
    assert "e" * 64 in steps[2].ContributionDescription
    assert "denoise 0.1.0 mr-denoise" in denoised.DerivationDescription


def test_without_the_reconstructed_series_no_source_is_claimed(make_spooled):
    (instance,) = build(make_spooled(series=("denoised",)))
    assert "SourceImageSequence" not in read(instance)


def test_an_image_that_was_not_denoised_is_kept_as_reconstructed_and_says_why(marked):
    (instance,) = build(marked)
    lines = read(instance).ImageComments.splitlines()
    assert lines == [
        "UNPROCESSED: denoise: model failed its golden test",
        "INCOMPLETE: the scanner hung up",
        "WARNING: RF spike at line 81; look for loose metal",
        "For research use only. Not for diagnosis.",
    ]


def test_pixels_beyond_the_scale_are_clipped_and_told(make_spooled):
    bright = np.full((48, 32), 1.0, np.float32)
    bright[3, 4] = 100.0
    (instance,) = build(make_spooled(denoised=False, array=bright))
    assert "CLIPPED: 1 pixels" in read(instance).ImageComments


def test_building_again_gives_the_same_bytes(make_spooled):
    assert [i.data for i in build(make_spooled(2))] == [i.data for i in build(make_spooled(2))]


def test_the_encoding_is_pydicoms_own(make_spooled, marked):
    for instance in (*build(make_spooled(2)), *build(marked)):
        file = BytesIO()
        dcmwrite(file, read(instance), enforce_file_format=True)
        assert file.getvalue() == instance.data


def test_uids_differ_by_frame_kind_scan_and_model(make_spooled):
    def uids(**changes):
        return [(i.sop_instance_uid, str(read(i).SeriesInstanceUID)) for i in build(make_spooled(**changes))]

    first, second = uids(sequence=0), uids(sequence=1)
    assert [series for _, series in first] == [series for _, series in second]
    other_model = replace(make_spooled().frame.provenance[1], model_digest="0" * 64)
    steps = (make_spooled().frame.provenance[0], other_model)
    remodelled, rescanned = uids(provenance=steps), uids(scan_id="scan-2")
    assert remodelled[0] == first[0]
    assert remodelled[1][1] != first[1][1]
    assert rescanned[0][1] != first[0][1]
    every = [uid for uid, _ in (*first, *second, remodelled[1], *rescanned)]
    assert len(set(every)) == len(every)
    assert all(is_uid(uid) for uid in every)


def test_without_a_study_uid_one_scan_is_one_study(make_spooled):
    studies = {
        str(read(instance).StudyInstanceUID)
        for sequence in range(3)
        for instance in build(make_spooled(sequence, identity=Identity()))
    }
    assert len(studies) == 1
    assert is_uid(studies.pop())


ANY = st.text(max_size=90)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.tuples(*[ANY] * 11))
def test_whatever_a_header_holds_a_valid_object_is_built(make_spooled, values):
    # Warnings are errors here: pydicom warns, with the value in the text, of what does not fit its representation.
    for instance in build(make_spooled(identity=Identity(*values))):
        ds = read(instance)
        assert len(ds.PatientID) <= 64
        assert [str(ds[tag].value) for tag in ("PatientName", "StudyDate", "StudyTime")]
