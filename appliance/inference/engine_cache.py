# SPDX-License-Identifier: Apache-2.0
"""Keep built engines. An engine is executable content: only this user may write here, and its digest is checked."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from appliance.errors import ModelError

log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size  # a file is the digest of key and engine, then the engine


def cached_engine(folder: Path, key: str, build: Callable[[], bytes]) -> bytes:
    """Return the engine for `key`, building it when it is missing, damaged, or was built for another key.

    `key` must name everything the engine depends on: model digest, backend and version, precision and TF32,
    shapes, GPU capability and driver. Raises ModelError when other users could have written the folder, or when
    it cannot be read and written.
    """
    path = engine_file(folder, key)
    try:
        _make_private(folder)
        engine = _read(path, key)
        if engine is None:
            engine = build()
            _write(path, key, engine)
    except OSError as e:
        raise ModelError(f"{folder}: cannot keep engines: {e.strerror}; check the disk and the owner") from e
    return engine


def engine_file(folder: Path, key: str) -> Path:
    """Where the engine for `key` is kept."""
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.engine"


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise ModelError(
            f"{folder}: mode {found.st_mode & 0o777:04o}, owner {found.st_uid}: others could replace an engine; "
            "delete the folder"
        )


def _read(path: Path, key: str) -> bytes | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, engine = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if _digest(key, engine) == digest:
        return engine
    log.warning("%s: damaged, or built for something else; building it again", path)
    return None


def _digest(key: str, engine: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(key.encode()).digest() + engine).digest()


def _write(path: Path, key: str, engine: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(_digest(key, engine) + engine)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
