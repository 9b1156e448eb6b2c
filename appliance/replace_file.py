# SPDX-License-Identifier: Apache-2.0
"""Put new content in the place of a file: the whole of it or nothing, whatever happens meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def replace_file(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write `content` to `path`; it is on disk, with its name, when this returns.

    `mode` is subject to the umask. Several writers at a time do not disturb each other: the last one's content stays.
    A kill leaves the old file or the new one, and maybe a draft beside it. Raises OSError.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk when this returns. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
