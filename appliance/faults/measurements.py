# SPDX-License-Identifier: Apache-2.0
"""What the rules measured of the newest frames, on disk, so that a site can be commissioned from it.

One file for each setup: a head, then rows of float32, one for each frame; NaN where a rule had no basis. The oldest
rows make room. No image, no time and no identity is kept; what is lost in a crash is not missed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import struct
import threading
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from appliance.errors import StorageError

log = logging.getLogger(__name__)

MOST_FRAMES = 20_000  # in one file: 1.5 MB
WAITING_FRAMES = 4096  # kept in memory while the disk is slow; then frames are left out
WRITE_S = 2.0
_HEAD_BYTES = 4096  # JSON padded with blanks, and at its end the number of frames written so far
_COUNT = struct.Struct("<Q")
_SUFFIX = ".measured"


class Measurements(NamedTuple):
    """Of one setup, in no particular order."""

    setup: str
    rules: tuple[str, ...]
    frames: NDArray[np.float32]  # (frame, rule)


class _Ring:
    """One file that is being written."""

    def __init__(self, path: Path, setup: str, rules: tuple[str, ...]) -> None:
        self._rules = rules
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        head = json.dumps({"format": 1, "setup": setup, "rules": rules}).encode().ljust(_HEAD_BYTES - _COUNT.size)
        before = os.pread(self._file, _HEAD_BYTES, 0)
        same = len(before) == _HEAD_BYTES and before.startswith(head)
        self._n_frames = _COUNT.unpack(before[len(head) :])[0] if same else 0
        if not same:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, head + _COUNT.pack(0), 0)

    def append(self, measured: Mapping[str, float]) -> None:
        row = np.array([measured.get(rule, np.nan) for rule in self._rules], np.float32).tobytes()
        os.pwrite(self._file, row, _HEAD_BYTES + self._n_frames % MOST_FRAMES * len(row))
        self._n_frames += 1
        os.pwrite(self._file, _COUNT.pack(self._n_frames), _HEAD_BYTES - _COUNT.size)

    def close(self) -> None:
        os.close(self._file)


class Recorder:
    """Writes on a thread of its own: `add` never waits."""

    def __init__(self, folder: Path, pipeline: str) -> None:
        self._folder, self._pipeline = folder, pipeline
        self._waiting: deque[tuple[str, tuple[str, ...], Mapping[str, float]]] = deque(maxlen=WAITING_FRAMES)
        self._stop = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._run, name="measurements", daemon=True)
        self._thread.start()

    def add(self, setup: str, rules: tuple[str, ...], measured: Mapping[str, float]) -> None:
        """Take what was measured of one frame; `rules` is the same for every frame of a setup."""
        self._waiting.append((setup, rules, measured))

    def close(self) -> None:
        """Write what waits, and end."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(WRITE_S)
            try:
                self._write()
            except OSError as error:  # the disk: images go on, and commissioning says how many frames there are
                if self._told != str(error):
                    log.warning("measurements of %s are not kept: %s", self._pipeline, error.strerror)
                self._told = str(error)

    def _write(self) -> None:
        rings: dict[Path, _Ring] = {}
        try:
            while self._waiting:
                setup, rules, measured = self._waiting.popleft()
                path = self._folder / _file_name(self._pipeline, setup)
                if path not in rings:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    rings[path] = _Ring(path, setup, rules)
                rings[path].append(measured)
        finally:
            for ring in rings.values():
                ring.close()


@cache
def recorder(folder: Path, pipeline: str) -> Recorder:
    """Return the one recorder of a pipeline in this process."""
    return Recorder(folder, pipeline)


def _file_name(pipeline: str, setup: str) -> str:
    return f"{pipeline}-{hashlib.sha256(setup.encode()).hexdigest()[:16]}{_SUFFIX}"


def measurement_files(folder: Path, pipeline: str) -> list[Path]:
    """Return the files of a pipeline."""
    digits = "[0-9a-f]" * 16
    return sorted(folder.glob(f"{pipeline}-{digits}{_SUFFIX}"))


def read_measurements(path: Path) -> Measurements:
    """Read one file. Raises StorageError when it is not what it should be."""
    try:
        content = path.read_bytes()
        head = json.loads(content[: _HEAD_BYTES - _COUNT.size])
        setup, rules = str(head["setup"]), tuple(map(str, head["rules"]))
        n_frames = min(_COUNT.unpack(content[_HEAD_BYTES - _COUNT.size : _HEAD_BYTES])[0], MOST_FRAMES)
        rows = np.frombuffer(content, np.float32, n_frames * len(rules), _HEAD_BYTES)
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror}; check its permissions") from error
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise StorageError(f"{path}: damaged; delete it, its frames are recorded anew") from error
    return Measurements(setup, rules, rows.reshape(n_frames, len(rules)))
