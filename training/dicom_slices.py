# SPDX-License-Identifier: Apache-2.0
"""Read the slices of a series from a tar archive of DICOM files, in order of instance number."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray


def dicom_slices(archive: Path) -> NDArray[np.float32]:
    """Return float32 (slice, y, x), rescaled (PS3.3 C.11.1): CT in HU. What is no DICOM (licences) is left out."""
    slices: dict[int, NDArray[np.float32]] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            data = content.read() if content else b""
            if data[128:132] == b"DICM":
                ds = pydicom.dcmread(io.BytesIO(data))
                slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
                pixels = ds.pixel_array.astype(np.float32)
                slices[int(ds.InstanceNumber)] = pixels * np.float32(slope or 1) + np.float32(intercept or 0)
    return np.stack([slices[number] for number in sorted(slices)])
