# SPDX-License-Identifier: Apache-2.0
"""Spooled images of every kind for the DICOM tests."""

from dataclasses import replace

import numpy as np
import pytest
from receivers import Scp

from appliance.buffer import Buffer
from appliance.dicom import negotiation
from appliance.dicom.spool import Spooled, images_to_keep
from appliance.frames import Applied, Encoding, Finding, Frame, Identity, Mark, Position, Scan, read_only

NAME, PATIENT_ID, BIRTH = "Muster^Erika", "SECRET-4711", "19641112"


@pytest.fixture
def identity():
    return Identity(
        patient_id=PATIENT_ID,
        patient_name=NAME,
        birth_date=BIRTH,
        sex="F",
        accession_number="ACC-9",
        study_instance_uid="1.2.826.0.1.3680043.2.1125.1",
        frame_of_reference_uid="1.2.826.0.1.3680043.2.1125.2",
        study_date="20240229",
        study_time="081500",
        study_description="Heart, cine",
        referring_physician="Ärztin^Jana",
    )


@pytest.fixture
def scan(identity):
    encoding = Encoding(
        encoded_matrix=(64, 48, 1),
        recon_matrix=(32, 48, 1),
        encoded_fov_mm=(640.0, 480.0, 8.0),
        recon_fov_mm=(320.0, 480.0, 8.0),
        n_coils=8,
        acceleration_y=2,
        tr_ms=3.2,
        te_ms=1.6,
        flip_deg=45.0,
        field_strength_t=1.494,
        frequency_hz=63.6e6,
        sequence_name="trufi",
        protocol_name="cine_sax",
        series_number=7,
        manufacturer="Example",
        institution="Example Hospital",
    )
    return Scan(
        scan_id="scan-1",
        modality="MR",
        axes=("y", "x"),
        shape=(48, 32),
        dtype="float32",
        started_ns=1_709_194_500_000_000_000,
        identity=identity,
        encoding=encoding,
    )


def image(seed, shape=(48, 32)):
    return read_only(np.random.default_rng(seed).random(shape, dtype=np.float32))


def affine(row, column, spacing, origin):
    """Voxel (x, y, z) -> LPS mm, from unit vectors."""
    matrix = np.eye(4)
    for axis, vector in enumerate((row, column, np.cross(row, column))):
        matrix[:3, axis] = np.multiply(vector, spacing[axis])
    matrix[:3, 3] = origin
    return matrix


RECONSTRUCT = Applied("reconstruct", "0.1.0", "ab12")
DENOISE = Applied("denoise", "0.1.0", "cd34", "mr-denoise", "e" * 64, "f" * 64)
DETECT = Applied("detect_anomalies", "0.1.0", "ef56")


@pytest.fixture
def make_spooled(scan):
    def make(sequence=0, *, denoised=True, series=("reconstructed", "denoised"), to=("pacs",), **changes):
        scan_changes = {key: changes.pop(key) for key in ("identity", "encoding", "scan_id") if key in changes}
        shape = changes.pop("shape", (48, 32))
        values = {
            "scan_id": scan.scan_id,
            "sequence": sequence,
            "array": image(2 * sequence, shape),
            "original": image(2 * sequence + 1, shape) if denoised else None,
            "axes": ("y", "x"),
            "affine": affine((1, 0, 0), (0, 1, 0), (10.0, 10.0, 8.0), (-160.0, -240.0, 12.5)),
            "acquired_ns": 1_709_194_500_123_456_000 + sequence * 33_000_000,
            "received_ns": 5,
            "position": Position(repetition=sequence),
            "provenance": (RECONSTRUCT, DENOISE, DETECT) if denoised else (RECONSTRUCT, DETECT),
        }
        frame = Frame(**(values | changes))
        kept = images_to_keep(frame, series)
        return Spooled(replace(scan, **scan_changes), frame, kept, 1000.0, (0.1, 0.9), to, 1_709_194_501_000_000_000)

    return make


@pytest.fixture
def marked(make_spooled):
    return make_spooled(
        denoised=False,
        marks=(Mark("denoise", "model failed its golden test"), Mark("mrd", "INCOMPLETE: the scanner hung up")),
        findings=(Finding("spike", "RF spike at line 81; look for loose metal", where={"line": np.int64(81)}),),
    )


@pytest.fixture
def buffer(tmp_path):
    opened = Buffer(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def running():
    one = Scp()
    yield one
    one.server.close()


@pytest.fixture
def scp(running, monkeypatch):
    """Have the acceptor answer `status` (or what it gives for an instance); gives its port and what it gets."""

    def start(status=0, longest_pdu=negotiation.LONGEST_PDU):
        running.got, running.status = [], status
        monkeypatch.setattr(negotiation, "LONGEST_PDU", longest_pdu)
        return running.server.address[1], running.got

    return start
