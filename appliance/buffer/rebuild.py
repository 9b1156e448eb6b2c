# SPDX-License-Identifier: Apache-2.0
"""Makes the database again from the bytes of the segments, which say themselves what they are.

What is owed is then owed again: destinations get instances twice rather than never, and take the second as success.
Rule: no other process may have the buffer open.
"""

from __future__ import annotations

from pathlib import Path

from appliance.buffer.buffer import Buffer
from appliance.buffer.segments import fsync_folder


def rebuild(data_dir: Path, now: float) -> int:
    """Move the database aside and index every segment; gives how many instances there are. Raises StorageError."""
    for suffix in ("-shm", "-wal", ""):  # the database last: a kill in between leaves one that `check` refuses
        path = data_dir / f"nearscan.sqlite{suffix}"
        if path.exists():
            path.replace(path.with_name(f"before-rebuild-{now:.0f}-{path.name}"))
    fsync_folder(data_dir)
    buffer = Buffer(data_dir)
    try:
        buffer.recover(now)
        return int(buffer.counts()["produced"] + buffer.counts()["received"])
    finally:
        buffer.close()
