# SPDX-License-Identifier: Apache-2.0
"""Performed procedure steps: pynetdicom as the modality, and every order of N-CREATE and N-SET."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.sop_class import ModalityPerformedProcedureStep as Mpps
from receivers import receiving

from appliance.buffer import Buffer
from appliance.buffer.mpps import ProcedureSteps
from appliance.dicom.procedure_step import read_step
from appliance.errors import PeerError


def step(status=None, series=()):
    ds = Dataset()
    if status:
        ds.PerformedProcedureStepStatus = status
    ds.PatientName = "Secret^Name"
    ds.PerformedSeriesSequence = []
    for uid, n_images in series:
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedImageSequence = uid, []
        for n in range(n_images):
            image = Dataset()
            image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", f"{uid}.{n}"
            item.ReferencedImageSequence.append(image)
        ds.PerformedSeriesSequence.append(item)
    return ds


@pytest.fixture
def modality(tmp_path, free_port):
    """An association of a modality with a running receiver."""
    with receiving(tmp_path / "data", free_port) as one:
        ae = AE("MR")
        ae.add_requested_context(Mpps, ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"])
        assoc = ae.associate("127.0.0.1", free_port, ae_title="NEARSCAN")
        assert assoc.is_established
        yield assoc, one
        assoc.release()


def test_a_step_from_its_beginning_to_its_end(modality):
    assoc, one = modality
    uid = generate_uid()
    assert assoc.send_n_create(step("IN PROGRESS"), Mpps, uid)[0].Status == 0
    assert assoc.send_n_create(step("IN PROGRESS"), Mpps, uid)[0].Status == 0x0111
    assert assoc.send_n_set(step(series=[("1.2.3", 2)]), Mpps, uid)[0].Status == 0
    assert one._steps.of_series("1.2.3") == ("IN PROGRESS", ["1.2.3.0", "1.2.3.1"])
    assert assoc.send_n_set(step("COMPLETED", [("1.2.3", 5), ("1.2.4", 1)]), Mpps, uid)[0].Status == 0
    assert one._steps.of_series("1.2.3") == ("COMPLETED", [f"1.2.3.{n}" for n in range(5)])
    assert one._steps.of_series("1.2.4") == ("COMPLETED", ["1.2.4.0"])
    assert one._steps.of_series("1.2.5") is None
    answer, _ = assoc.send_n_set(step("DISCONTINUED"), Mpps, uid)
    assert (answer.Status, answer.ErrorID) == (0x0110, 0xA710)
    assert assoc.send_n_set(step("COMPLETED"), Mpps, generate_uid())[0].Status == 0x0112
    assert assoc.send_n_create(step("COMPLETED"), Mpps, generate_uid())[0].Status == 0x0106
    assert "Secret" not in str(one._buffer.database.query("SELECT * FROM mpps"))


def test_it_is_on_disk_before_it_is_answered(tmp_path):
    first = Buffer(tmp_path)
    assert ProcedureSteps(first.database).create("1.2", "IN PROGRESS", {"1.2.3": ["1.1"]}, "MR", 1) == "done"
    second = Buffer(tmp_path)
    assert ProcedureSteps(second.database).of_series("1.2.3") == ("IN PROGRESS", ["1.1"])
    first.close()
    second.close()


@given(st.binary(max_size=200), st.sampled_from(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]))
def test_garbage_is_the_peers_fault(data, syntax):
    try:
        read_step(data, syntax)
    except PeerError:
        return
