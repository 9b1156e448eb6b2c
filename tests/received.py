# SPDX-License-Identifier: Apache-2.0
"""Received instances for tests: small CT images, and files as they are."""

from io import BytesIO

import numpy as np
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from appliance.buffer import NewInstance

STUDY, SERIES = "1.2.3", "1.2.3.4"


def ct(number, series=SERIES, sop_class=CTImageStorage, **attributes):
    """A CT slice (or another image) of 4 rows and 6 columns that holds its own number."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"{series}.{number}"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = sop_class, ds.SOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = STUDY, series, "CT", number
    ds.PatientName, ds.PatientID = "Muster^Erika", "SECRET-4711"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10.0, -20.0, 5.0 * number], [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.25], 5
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 4, 6, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept = 2, -1024
    ds.PixelData = np.full((4, 6), number, "<u2").tobytes()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    out = BytesIO()
    dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def receive(buffer, data, now=0.0, association="a", peer="CT1"):
    """Keep a file as the receiver does; gives what became of it."""
    meta = dcmread(BytesIO(data), stop_before_pixels=True).file_meta
    uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
    new = NewInstance(data, *map(str, uids), origin="received", peer=peer, association=association)
    return buffer.put_instance(new, now)
