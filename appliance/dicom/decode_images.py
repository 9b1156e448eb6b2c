# SPDX-License-Identifier: Apache-2.0
"""A DICOM file -> its images as float32, where they are and how to show them. The main of a child process with limited
memory and time.

Rule: nobody but `image_decoder` runs this: pydicom trusts what it reads, and a small file can ask for any amount of
memory and time. Nothing that the file says leaves here but pixels, geometry, grey window and our own words.

In on stdin:   8 bytes length (little-endian), then a Part 10 file
Out on stdout: for each frame 4 bytes length of a JSON header, 8 bytes length of the pixels, header, pixels; then a last
               header {"end": problem}
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.pixels import iter_pixels

from appliance.dicom.image_decoder import HEAD, LENGTH

_TOLERANCE = 1e-3  # of unit vectors and right angles; scanners write six digits

Geometry = NDArray[np.float64]


class UndecodableError(Exception):
    """In our own words, without anything that the file says."""


def frames(file: bytes) -> Iterator[tuple[NDArray[np.float32], Geometry | None, dict[str, Any]]]:
    """Give each frame, rescaled, with its affine (voxel (x, y, z, 1) -> LPS mm; None where the file does not say) and
    how it is to be shown: "inverted" and "window".

    Raises UndecodableError, and whatever pydicom raises.
    """
    ds = dcmread(BytesIO(file))
    photometric = ds.get("PhotometricInterpretation", "")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UndecodableError("it is no grey image")
    if "ModalityLUTSequence" in ds:
        raise UndecodableError("its values need a modality look-up table")
    for number, pixels in enumerate(iter_pixels(ds, raw=True)):
        slope, intercept = rescale(ds, number)
        image = pixels.astype(np.float32)
        if (slope, intercept) != (1.0, 0.0):
            image = image * np.float32(slope) + np.float32(intercept)
        inverted = photometric == "MONOCHROME1"  # PS3.3 C.7.6.3.1.2: the lowest value is white
        yield image, affine(ds, number), {"inverted": inverted, "window": window(ds, number)}


def window(ds: Dataset, frame: int) -> tuple[float, float] | None:
    """Give what the first window of one frame shows black and white (PS3.3 C.11.2.1.2); None: the file has none."""
    where = _group(ds, frame, "FrameVOILUTSequence") or ds
    centre, width = (np.atleast_1d(where.get(name) or []) for name in ("WindowCenter", "WindowWidth"))
    if not centre.size or not width.size:
        return None
    low, high = float(centre[0]) - float(width[0]) / 2, float(centre[0]) + float(width[0]) / 2
    return (low, high) if np.isfinite([low, high]).all() and high > low else None


def rescale(ds: Dataset, frame: int) -> tuple[float, float]:
    """Give (slope, intercept) of one frame (PS3.3 C.11.1, C.7.6.16.2.9)."""
    where = _group(ds, frame, "PixelValueTransformationSequence") or ds
    slope, intercept = where.get("RescaleSlope"), where.get("RescaleIntercept")
    return (1.0 if slope is None else float(slope)), (0.0 if intercept is None else float(intercept))


def affine(ds: Dataset, frame: int) -> Geometry | None:
    """Give voxel index (x, y, z, 1) -> centre of the voxel in LPS mm (PS3.3 C.7.6.2.1.1, C.7.6.16.2.3 and 4)."""
    position = (_group(ds, frame, "PlanePositionSequence") or ds).get("ImagePositionPatient")
    orientation = (_group(ds, frame, "PlaneOrientationSequence") or ds).get("ImageOrientationPatient")
    measures = _group(ds, frame, "PixelMeasuresSequence") or ds
    spacing = measures.get("PixelSpacing")
    try:
        origin, directions = np.array(position, np.float64), np.array(orientation, np.float64).reshape(2, 3)
        row_mm, column_mm = np.array(spacing, np.float64)  # between rows (along y), between columns (along x)
        apart_mm = float(measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0)
    except (TypeError, ValueError):
        return None
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = directions[0] * column_mm, directions[1] * row_mm
    matrix[:3, 2] = np.cross(*directions) * abs(apart_mm)
    matrix[:3, 3] = origin
    square = np.allclose(directions @ directions.T, np.eye(2), atol=_TOLERANCE)
    return matrix if square and np.isfinite(matrix).all() and row_mm > 0 and column_mm > 0 else None


def _group(ds: Dataset, frame: int, name: str) -> Dataset | None:
    """Give the functional group of one frame of an Enhanced object, its own or the shared one."""
    for sequence, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = ds.get(sequence) or []
        if index < len(items) and items[index].get(name):
            group: Dataset = items[index][name].value[0]
            return group
    return None


def answer(file: bytes, out: BinaryIO) -> None:
    """Write all frames and how it ended."""
    problem = ""
    try:
        for pixels, where, shown in frames(file):
            header = {"shape": pixels.shape, "affine": None if where is None else where.tolist(), **shown}
            _write(out, header, pixels.tobytes())
    except UndecodableError as error:
        problem = str(error)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the process's main: whatever a library makes of hostile bytes
        problem = f"{type(error).__name__} while decoding"
    _write(out, {"end": problem}, b"")
    out.flush()


def _write(out: BinaryIO, header: dict[str, Any], pixels: bytes) -> None:
    text = json.dumps(header).encode()
    out.write(HEAD.pack(len(text), len(pixels)) + text)
    out.write(pixels)


def main(memory_bytes: int, cpu_s: int) -> None:
    """Answer files until stdin ends."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # the pipeline's real-time priority is not for this
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold patient data
    warnings.simplefilter("ignore")
    source = sys.stdin.buffer
    while len(head := source.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(head)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        answer(source.read(length), sys.stdout.buffer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
