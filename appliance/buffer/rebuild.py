# SPDX-License-Identifier: Apache-2.0
"""Makes the database again from the bytes of the segments, which say themselves what they are.

What is owed is then owed again: destinations get instances twice rather than never, and take the second as success.
Rule: no other process may have the buffer open.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.buffer.buffer import Buffer
from appliance.buffer.segments import fsync_folder


def rebuild(data_dir: Path, now: float) -> int:
    """Move the database aside and index every segment; gives how many instances there are. Raises StorageError."""
    for suffix in ("-shm", "-wal", ""):  # the database last: a kill in between leaves one that `check` refuses
        path = data_dir / f"nearscan.sqlite{suffix}"
        if path.exists():
            path.replace(path.with_name(f"before-rebuild-{now:.0f}-{path.name}"))
    (data_dir / "nearscan.sqlite").touch(0o640)
    _give_to_the_owner(data_dir)
    fsync_folder(data_dir)
    buffer = Buffer(data_dir)
    try:
        buffer.recover(now)
        n_instances = int(buffer.counts()["produced"] + buffer.counts()["received"])
        buffer.record("rebuilt", "buffer", f"{n_instances} instances", now)
        return n_instances
    finally:
        buffer.close()


def _give_to_the_owner(data_dir: Path) -> None:
    """What root makes here the service's user must be able to open; SQLite's own files follow the database."""
    if os.geteuid() == 0:
        owner = data_dir.stat()
        os.chown(data_dir / "nearscan.sqlite", owner.st_uid, owner.st_gid)
