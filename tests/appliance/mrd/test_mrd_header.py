# SPDX-License-Identifier: Apache-2.0
"""The MRD header: real ones, the schema of the reference library, missing and hostile ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ismrmrd
import ismrmrd.xsd
import pytest

from appliance.errors import PeerError
from appliance.frames import Encoding, Identity
from appliance.mrd.header import MrdHeader, encode_header_xml, parse_header

DATA = Path(__file__).parents[3] / "../shared/data/mrd"
ENCODING = Encoding(
    encoded_matrix=(256, 192, 1),
    recon_matrix=(128, 192, 1),
    encoded_fov_mm=(600.0, 300.0, 8.0),
    recon_fov_mm=(300.0, 300.0, 8.0),
    n_coils=8,
    acceleration_y=2,
    calibration="embedded",
    tr_ms=3.2,
    te_ms=1.6,
    flip_deg=50.0,
    field_strength_t=1.5,
    frequency_hz=63_870_000.0,
    sequence_name="bssfp",
    protocol_name="cine",
    manufacturer="Vendor",
    model_name="Model",
)
XML = encode_header_xml(ENCODING, Identity(patient_id="7"), 5).decode()


def parse(xml: str) -> MrdHeader:
    return parse_header(xml.encode())


def refused(xml: str) -> str:
    with pytest.raises(PeerError) as caught:
        parse(xml)
    return str(caught.value)


def without(tag: str, xml: str = XML) -> str:
    begin, end = xml.index(f"<{tag}>"), xml.index(f"</{tag}>") + len(tag) + 3
    return xml[:begin] + xml[end:]


@pytest.mark.parametrize("name", ["brain8ch_semireal_full", "brain8ch_semireal_R2_acs24"])
def test_real_headers_agree_with_the_reference_library(name: str) -> None:
    path = DATA / f"{name}.h5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    xml = ismrmrd.Dataset(str(path), "dataset", mode="r").read_xml_header()
    header, theirs = parse_header(xml + b"\0"), ismrmrd.xsd.CreateFromDocument(xml).encoding[0]
    size, fov = theirs.encodedSpace.matrixSize, theirs.encodedSpace.fieldOfView_mm
    assert header.encoding.encoded_matrix == (size.x, size.y, size.z) == (230, 180, 1)
    assert header.encoding.encoded_fov_mm == (fov.x, fov.y, fov.z)
    assert header.encoding.n_coils == 8
    assert header.encoding.calibration == ("embedded" if "R2" in name else "none")
    assert header.encoding.acceleration_y == (2 if "R2" in name else 1)
    assert (header.ky_shift, header.ky_first, header.ky_last, header.n_frames) == (0, 0, 179, 1)
    assert header.unsupported == ""


def test_what_we_write_is_valid_for_the_reference_library_and_reads_back() -> None:
    theirs = ismrmrd.xsd.CreateFromDocument(XML.encode())
    assert theirs.encoding[0].parallelImaging.calibrationMode.value == "embedded"
    assert theirs.subjectInformation.patientID == "7"
    header = parse(XML)
    assert header.encoding == ENCODING
    assert header.identity.patient_id == "7"
    assert header.n_frames == 5


def test_identity_is_read_in_dicom_form_and_never_shown() -> None:
    theirs = ismrmrd.xsd.CreateFromDocument(XML.encode())
    theirs.subjectInformation = ismrmrd.xsd.subjectInformationType(patientName="Doe^Jane", patientGender="F")
    theirs.studyInformation = ismrmrd.xsd.studyInformationType(
        accessionNumber=42, studyInstanceUID="1.2.840.1", referringPhysicianName="House"
    )
    xml = ismrmrd.xsd.ToXML(theirs, encoding="utf-8")
    dates = "<studyDate>2024-02-29</studyDate><studyTime>13:05:59.25</studyTime>"
    xml = xml.replace("<studyInformation>", "<studyInformation>" + dates)
    identity = parse(xml).identity
    assert (identity.patient_name, identity.sex, identity.accession_number) == ("Doe^Jane", "F", "42")
    assert (identity.study_date, identity.study_time) == ("20240229", "130559")
    assert identity.study_instance_uid == "1.2.840.1"
    assert "Doe" not in repr(parse(xml))
    assert parse(xml.replace("1.2.840.1", "1.02.x")).identity.study_instance_uid == ""
    assert parse(xml.replace("2024-02-29", "yesterday")).identity.study_date == ""


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (without("encoding"), "mrd header: encoding is missing; a scan cannot be reconstructed without it"),
        (without("encodedSpace"), "mrd header: encoding/encodedSpace/matrixSize/x is missing"),
        (without("reconSpace"), "mrd header: encoding/reconSpace/matrixSize/x is missing"),
        (without("fieldOfView_mm"), "mrd header: encoding/encodedSpace/fieldOfView_mm/x is missing"),
        (XML.replace("<x>256</x>", "<x>0</x>"), "mrd header: encodedSpace/matrixSize/x is 0; a whole number from 1 to"),
        (XML.replace("<x>256</x>", "<x>99999</x>"), "mrd header: encodedSpace/matrixSize/x is 99999"),
        (XML.replace("<x>256</x>", "<x>1.5</x>"), "mrd header: encodedSpace/matrixSize/x is 1.5"),
        (XML.replace("<x>256</x>", "<x>many</x>"), "mrd header: encodedSpace/matrixSize/x is not a number: 'many'"),
        (XML.replace("<x>600.0</x>", "<x>nan</x>"), "mrd header: encodedSpace/fieldOfView_mm/x is not finite: 'nan'"),
        (XML.replace("<x>600.0</x>", "<x>-1</x>"), "mrd header: encoding/encodedSpace/fieldOfView_mm/x is -1 mm"),
        (
            XML.replace("<maximum>191</maximum>", "<maximum>192</maximum>"),
            "mrd header: encodingLimits/kspace_encoding_step_1 0 to 192 with centre 96 do not fit into 192 encoded",
        ),
        (XML.replace("ismrmrdHeader", "other"), "mrd header: root element is 'other'; expected 'ismrmrdHeader'"),
        (XML[:-5], "mrd header: not well-formed XML, line "),
        ("", "mrd header: not well-formed XML, line 1: no element found"),
        (XML.replace("utf-8", "utf-99"), "mrd header: "),
    ],
)
def test_what_is_missing_or_makes_no_sense(xml: str, text: str) -> None:
    assert refused(xml).startswith(text)


def test_trajectories_and_3d_are_named_but_images_with_such_a_header_may_pass() -> None:
    spiral = parse(XML.replace("cartesian", "spiral"))
    assert spiral.unsupported.startswith("mrd header: trajectory 'spiral' is not supported; send 2D Cartesian data")
    volume = parse(XML.replace("<z>1</z>", "<z>64</z>", 1))
    assert volume.unsupported == "mrd header: 3D encoding (64 partitions) is not supported; send 2D slices"
    assert parse(XML.replace("cartesian", "epi")).unsupported == ""


def test_only_the_mandatory_part_is_needed() -> None:
    xml = XML
    for tag in ("subjectInformation", "measurementInformation", "sequenceParameters", "encodingLimits"):
        xml = without(tag, xml)
    header = parse(without("acquisitionSystemInformation", xml))
    assert header.encoding.n_coils == 0
    assert header.encoding.patient_position == "HFS"
    assert (header.ky_first, header.ky_last, header.n_frames) == (0, 191, None)


def test_partial_fourier_limits_move_the_centre_to_the_middle() -> None:
    """72 lines lie before the centre, as when the scanner leaves out the first 24 and counts from 0."""
    limits = "<minimum>0</minimum><maximum>191</maximum><center>96</center>"
    header = parse(XML.replace(limits, "<minimum>0</minimum><maximum>167</maximum><center>72</center>"))
    assert (header.ky_shift, header.ky_first, header.ky_last) == (24, 24, 191)
    unfilled = parse(XML.replace(limits, "<minimum>0</minimum><maximum>191</maximum><center>0</center>"))
    assert (unfilled.ky_shift, unfilled.ky_first, unfilled.ky_last) == (0, 0, 191)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("separate", "separate"),
        ("external", "separate"),
        ("interleaved", "none"),
        ("other", "embedded"),
        ("", "embedded"),
    ],
)
def test_calibration_modes(mode: str, expected: str) -> None:
    assert parse(XML.replace(">embedded<", f">{mode}<")).encoding.calibration == expected


def test_frames_expected_is_the_product_of_the_counters() -> None:
    more = "<slice><minimum>0</minimum><maximum>2</maximum><center>0</center></slice></encodingLimits>"
    assert parse(XML.replace("</encodingLimits>", more)).n_frames == 15
    assert parse(encode_header_xml(replace(ENCODING, acceleration_y=1, calibration="none")).decode()).n_frames is None


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("xml", "text"),
    [
        (BOMB + "<ismrmrdHeader>&b;</ismrmrdHeader>", "XML with a document type (DTD) is refused"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><ismrmrdHeader/>', "XML with a document type (DTD) is refused"),
        ("<a>" * 40, "XML nested deeper than 32"),
        ("<ismrmrdHeader>" + "<a/>" * 100_001 + "</ismrmrdHeader>", "more than 100000 elements"),
    ],
)
def test_hostile_xml_is_refused(xml: str, text: str) -> None:
    assert text in refused(xml)
