# SPDX-License-Identifier: Apache-2.0
"""Object files: whole, durable, named by their content.

Rule: temp, fsync, rename, fsync the folder; a name is the SHA-256 of the bytes, so nothing that a peer sent
ever becomes a path, and reading proves that the bytes are those that were kept.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from appliance.errors import StorageError

_counter = itertools.count()

Payload = bytes | bytearray | memoryview


class ObjectError(StorageError):
    """This one object cannot be given back as it was kept; the buffer itself may be well."""


def digest_of(data: Payload) -> str:
    """SHA-256 of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_synced(path: Path, data: Payload) -> None:
    view = memoryview(data).cast("B")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


class ObjectFolder:
    """One folder of object files, spread over 256 folders where `spread` (many files that stay long)."""

    def __init__(self, folder: Path, *, spread: bool) -> None:
        self._folder = folder
        self._spread = spread
        (folder / "temp").mkdir(parents=True, exist_ok=True, mode=0o750)
        fsync_folder(folder)
        fsync_folder(folder.parent)

    def path(self, digest: str) -> Path:
        """Where the object named `digest` lies."""
        return self._folder / digest[:2] / digest if self._spread else self._folder / digest

    def write(self, objects: Iterable[Payload]) -> list[str]:
        """Keep each of `objects`; durable on return. Gives their names. Raises OSError."""
        digests = [self._place(data) for data in objects]
        for folder in {self.path(digest).parent for digest in digests}:
            fsync_folder(folder)
        return digests

    def _place(self, data: Payload) -> str:
        digest = digest_of(data)
        temp = self._folder / "temp" / f"{os.getpid()}-{next(_counter)}"
        try:
            _write_synced(temp, data)
            self._make_folder(self.path(digest).parent)
            os.replace(temp, self.path(digest))
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        return digest

    def _make_folder(self, folder: Path) -> None:
        if not folder.exists():
            folder.mkdir(exist_ok=True, mode=0o750)
            fsync_folder(self._folder)

    def read(self, digest: str) -> bytes:
        """Give the object back. Raises ObjectError when it is gone or altered."""
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            raise ObjectError(
                f"buffer: object {digest[:16]} cannot be read ({error.strerror}); check the disk"
            ) from error
        if digest_of(data) != digest:
            raise ObjectError(f"buffer: object {digest[:16]} was altered on the disk; check the disk")
        return data

    def holds(self, digest: str) -> bool:
        """Whether the object is there."""
        return self.path(digest).exists()

    def delete(self, digest: str) -> None:
        """Remove the object; none is no error."""
        self.path(digest).unlink(missing_ok=True)

    def sweep(self, before_s: float, keep: Iterable[str] | None = None) -> int:
        """Remove what a killed writer left before `before_s` (UTC): temp files and, when `keep` is given, objects
        that are not in it (a folder that is not spread only). Gives how many."""
        stale = [path for path in (self._folder / "temp").iterdir() if path.stat().st_mtime < before_s]
        if keep is not None:
            kept = {*keep, "temp"}
            stale += [p for p in self._folder.iterdir() if p.name not in kept and p.stat().st_mtime < before_s]
        for path in stale:
            path.unlink(missing_ok=True)
        return len(stale)

    def free_bytes(self) -> int:
        """Space that is left for us on this file system."""
        return shutil.disk_usage(self._folder).free
