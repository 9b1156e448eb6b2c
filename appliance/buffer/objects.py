# SPDX-License-Identifier: Apache-2.0
"""Object files: whole, durable, named by their content.

Rule: temp, fsync, rename, fsync the folder; a name is the SHA-256 of the bytes, so nothing that a peer sent
ever becomes a path, and reading proves that the bytes are those that were kept.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from appliance.errors import StorageError

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


def _delete_older(folder: Path, before_s: float, keep: set[str]) -> None:
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # its writer has just renamed or deleted it
            if path.name not in keep and path.stat().st_mtime < before_s:
                path.unlink()


class ObjectFolder:
    """One folder of object files. Flat: what is written together then costs one fsync of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "temp").mkdir(parents=True, exist_ok=True, mode=0o750)
        fsync_folder(folder)
        fsync_folder(folder.parent)

    def path(self, digest: str) -> Path:
        """Where the object named `digest` lies."""
        return self._folder / digest

    def write(self, objects: Iterable[Payload]) -> list[str]:
        """Keep each of `objects`; durable on return. Gives their names. Raises OSError."""
        digests = [self._place(data) for data in objects]
        if digests:
            fsync_folder(self._folder)
        return digests

    def _place(self, data: Payload) -> str:
        digest = digest_of(data)
        temp = self._folder / "temp" / secrets.token_hex(16)
        try:
            _write_synced(temp, data)
            os.replace(temp, self.path(digest))
        except OSError:
            temp.unlink(missing_ok=True)
            raise
        return digest

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

    def sweep_temp(self, before_s: float) -> None:
        """Remove the temp files that a writer left that was killed before `before_s` (UTC)."""
        _delete_older(self._folder / "temp", before_s, keep=set())

    def sweep(self, before_s: float, keep: Iterable[str]) -> None:
        """Remove the objects from before `before_s` (UTC) that are not in `keep`."""
        _delete_older(self._folder, before_s, keep={*keep, "temp"})

    def free_bytes(self) -> int:
        """Space that is left for us on this file system."""
        return shutil.disk_usage(self._folder).free
