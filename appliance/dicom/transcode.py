# SPDX-License-Identifier: Apache-2.0
"""A data set in another transfer syntax, for a destination that takes no other; without loss, or not at all.

Run as a program it does the work, in a process with limited memory and time: pydicom trusts what it reads. What is kept
here is not touched; what was sent is in the audit.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import warnings
from io import BytesIO

from appliance.dicom.uids import BIG_ENDIAN, EXPLICIT, IMPLICIT
from appliance.errors import DeliveryError

PLAIN = (EXPLICIT, IMPLICIT)  # what every peer can be offered, the better first
_TIMEOUT_S = 60.0
_MEMORY_BYTES = 1 << 30  # for an interpreter with its libraries; and ten times the file


def transcode(file: bytes | bytearray, transfer_syntax_uid: str) -> bytes:
    """Give the data set of a Part 10 file in one of `PLAIN`. Raises DeliveryError, permanent, where that cannot be."""
    memory = _MEMORY_BYTES + 10 * len(file)
    command = [sys.executable, "-P", "-m", "appliance.dicom.transcode", transfer_syntax_uid, str(memory)]
    try:
        done = subprocess.run(
            command, input=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode != 0 or not done.stdout:
        text = f"it takes no transfer syntax that this instance can be given in; {transfer_syntax_uid} was tried"
        raise DeliveryError(f"transcode: {text}; allow the syntax that it has", permanent=True)
    return done.stdout


def _main(transfer_syntax_uid: str, memory_bytes: int) -> None:
    from pydicom import dcmread
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (int(_TIMEOUT_S), int(_TIMEOUT_S)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it would hold patient data
    warnings.simplefilter("ignore")
    ds = dcmread(BytesIO(sys.stdin.buffer.read()))
    if ds.file_meta.TransferSyntaxUID == BIG_ENDIAN:
        raise SystemExit(1)  # pydicom does not swap the bytes of its pixels
    if ds.file_meta.TransferSyntaxUID.is_compressed:
        ds.decompress(generate_instance_uid=False)  # PS3.3 C.7.6.1.1.5: it stays the same instance
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, transfer_syntax_uid == IMPLICIT
    write_dataset(out, ds)
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
