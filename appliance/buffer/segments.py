# SPDX-License-Identifier: Apache-2.0
"""Segments: append-only files of records; a record is durable for one fdatasync and says itself what it is.

Rule: the index can be made again from the bytes alone; nothing that a peer sent becomes a path. A segment has one
writer at a time, who holds its lock; a killed writer's segment is never written to again, only read and dropped.

A record is a header of 64 bytes, the data, the meta (JSON), and zeros up to a multiple of 8. The header is written
last: without it, the tail of a segment is nothing. It holds the SHA-256 of the data and a seal over itself and the
meta, so that whatever order the disk wrote in, a torn record is seen. The seal is keyed with the segment's name, which
no peer can know: what looks like a record inside the data that somebody sent is none.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.errors import StorageError

Payload = bytes | bytearray | memoryview

SEGMENT_BYTES = 64 << 20  # then the next one is begun
_HEADER = struct.Struct("<8sIIQ32s8s")  # magic, meta bytes, version, data bytes, SHA-256 of the data, seal
_HERE, _GONE = b"nsrecord", b"nspurged"
_VERSION = 1
_ALIGN = 8
_LONGEST_META, _LONGEST_DATA = 1 << 26, 1 << 40
_AT_ONCE = 1 << 20
_LIBC = ctypes.CDLL(None)
_WRITE_ONLY = 2  # SYNC_FILE_RANGE_WRITE: starts, waits for nothing, promises nothing
_WORTH_STARTING = 1 << 17
_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_SUFFIX = ".segment"
_NEW_S = 60.0


class ObjectError(StorageError):
    """This one object cannot be given back as it was kept; the buffer itself may be well."""


@dataclass(frozen=True)
class Place:
    """Where a record begins."""

    segment: str
    position: int


@dataclass(frozen=True)
class Record:
    """One record as it was written; `meta` may hold identity."""

    place: Place
    n_bytes: int
    digest: str  # SHA-256 of the data
    end: int  # where the next record begins
    meta: dict[str, Any] = field(repr=False)
    gone: bool = False  # purged: only the header is left


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


def _seal(segment: str, fields: bytes, meta: bytes) -> bytes:
    return hashlib.blake2b(fields + meta, digest_size=8, key=segment.encode("ascii")).digest()


def _header(segment: str, magic: bytes, n_meta: int, meta: bytes, n_bytes: int, sha256: bytes) -> bytes:
    """Encode a header; of a purged record `meta` is gone and `n_meta` still says how long it was."""
    fields = (magic, n_meta, _VERSION, n_bytes, sha256)
    return _HEADER.pack(*fields, _seal(segment, _HEADER.pack(*fields, b""), meta))


def _write_all(fd: int, data: Payload, position: int) -> int:
    view = memoryview(data).cast("B")
    while view:
        n_written = os.pwrite(fd, view, position)
        view, position = view[n_written:], position + n_written
    return position


def _read(fd: int, n_bytes: int, position: int) -> bytearray:
    data = bytearray(n_bytes)  # one call gives at most 2 GiB
    view = memoryview(data)
    while view and (n := os.preadv(fd, [view], position)):
        view, position = view[n:], position + n
    return data


class _Segment:
    """One open segment file, locked for this process."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{time.time_ns():020d}-{secrets.token_hex(16)}{_SUFFIX}"
        self.end = 0  # of the last durable record
        self.fd = os.open(folder / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            fsync_folder(folder)
        except OSError:
            os.close(self.fd)
            raise


class RecordWriter:
    """Writes one record at a time into a segment that nobody else writes to. Leaving it without `commit` keeps
    nothing. Raises StorageError; then nothing was kept, and nothing was promised."""

    def __init__(self, segments: Segments, segment: _Segment) -> None:
        self._segments, self._segment = segments, segment
        self._begin()

    def _begin(self) -> None:
        self._start = self._segment.end
        self._position = self._start + _HEADER.size
        self._hash = hashlib.sha256()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def write(self, data: Payload) -> None:
        """Append to the data of this record."""
        start = self._position
        try:
            self._position = _write_all(self._segment.fd, data, start)
        except OSError as error:
            raise self._failed(error) from error
        if self._position - start >= _WORTH_STARTING:
            _start_writing(self._segment.fd, start, self._position)
        self._hash.update(data)

    def finish(self, meta: Mapping[str, Any]) -> Record:
        """End this record, not yet durable; the next `write` begins another."""
        text = json.dumps(meta).encode()
        n_bytes = self._position - self._start - _HEADER.size
        end = _aligned(self._position + len(text))
        try:
            _write_all(self._segment.fd, text.ljust(end - self._position, b"\0"), self._position)
            header = _header(self._segment.name, _HERE, len(text), text, n_bytes, self._hash.digest())
            _write_all(self._segment.fd, header, self._start)
        except OSError as error:
            raise self._failed(error) from error
        place = Place(self._segment.name, self._start)
        record = Record(place, n_bytes, self._hash.hexdigest(), end, dict(meta))
        self._start, self._position, self._hash = end, end + _HEADER.size, hashlib.sha256()
        return record

    def sync(self) -> None:
        """Make all finished records durable: one fdatasync."""
        try:
            os.fdatasync(self._segment.fd)
        except OSError as error:
            raise self._failed(error) from error
        self._segment.end = self._start

    def commit(self, meta: Mapping[str, Any]) -> Record:
        """Finish this record; durable on return."""
        record = self.finish(meta)
        self.sync()
        return record

    def close(self) -> None:
        """Take back what is not durable and give the segment back. Again is no error."""
        segment, self._segment = self._segment, _NO_SEGMENT
        if segment is _NO_SEGMENT:
            return
        try:
            if self._position > segment.end + _HEADER.size:
                os.ftruncate(segment.fd, segment.end)
        except OSError:
            self._segments.drop(segment)
        else:
            self._segments.give_back(segment)

    def _failed(self, error: OSError) -> StorageError:
        """After a failed write or sync nobody knows what the disk holds: this segment is not written to again."""
        segment, self._segment = self._segment, _NO_SEGMENT
        with suppress(OSError):
            os.ftruncate(segment.fd, segment.end)
        self._segments.drop(segment)
        return StorageError(f"buffer: not written: {error.strerror}; check the disk of site.data_dir")


_NO_SEGMENT: Any = object()  # of a closed writer


class Segments:
    """All segments of one folder. Thread-safe; any number of processes may use the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: list[_Segment] = []
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        fsync_folder(folder.parent)

    def writer(self) -> RecordWriter:
        """Give a writer for one or more records, a context manager. Raises StorageError."""
        with self._lock:
            segment = self._free.pop() if self._free else None
        try:
            return RecordWriter(self, segment or _Segment(self._folder))
        except OSError as error:
            raise StorageError(f"buffer: not written: {error.strerror}; check the disk of site.data_dir") from error

    def give_back(self, segment: _Segment) -> None:
        """Take a segment back from its writer."""
        if segment.end >= SEGMENT_BYTES:
            self.drop(segment)
        else:
            with self._lock:
                self._free.append(segment)

    @staticmethod
    def drop(segment: _Segment) -> None:
        """Never write to this segment again."""
        with suppress(OSError):
            os.close(segment.fd)  # and with it the lock

    def close(self) -> None:
        """Close every segment that is not being written to."""
        with self._lock:
            segments, self._free = self._free, []
        for segment in segments:
            self.drop(segment)

    def free_bytes(self) -> int:
        """Space that is left for us on this file system."""
        return shutil.disk_usage(self._folder).free

    def names(self) -> list[str]:
        """Every segment, oldest first."""
        return sorted(path.name for path in self._folder.iterdir() if path.name.endswith(_SUFFIX))

    def is_written_to(self, name: str) -> bool:
        """Whether a live process, this one too, may still append to it."""
        try:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def read(self, place: Place, digest: str) -> bytearray:
        """Give a record's data back. Raises ObjectError when it is gone or altered."""
        (data,) = self.pieces(place, digest, _LONGEST_DATA)
        return data

    def pieces(self, place: Place, digest: str, at_once: int = _AT_ONCE) -> Iterator[bytearray]:
        """Give a record's data piece by piece, so that no more than one is in memory. Raises ObjectError: before the
        first when it is gone or altered, before the last when that happens meanwhile."""
        where = f"buffer: object {digest[:16]}"
        try:
            with (self._folder / place.segment).open("rb", buffering=0) as file:
                record = _record(file.fileno(), place)
                n_bytes = record.n_bytes if record else 0
                for sending in (True,) if n_bytes <= at_once else (False, True):
                    sha256 = hashlib.sha256()
                    for at in range(0, max(n_bytes, 1), at_once):
                        size = min(at_once, n_bytes - at)
                        piece = _read(file.fileno(), size, place.position + _HEADER.size + at)
                        sha256.update(piece)
                        if record is None or (at + size == n_bytes and sha256.hexdigest() != digest):
                            raise ObjectError(f"{where} was altered on the disk; check the disk")
                        if sending:
                            yield piece
        except OSError as error:
            raise ObjectError(f"{where} cannot be read ({error.strerror}); check the disk") from error

    def peek(self, place: Place, n_bytes: int) -> bytearray:
        """Give the first `n_bytes` of a record's data, not verified. Raises ObjectError."""
        try:
            with (self._folder / place.segment).open("rb", buffering=0) as file:
                record = _record(file.fileno(), place)
                wanted = min(n_bytes, record.n_bytes) if record else 0
                return _read(file.fileno(), wanted, place.position + _HEADER.size)
        except OSError as error:
            raise ObjectError(f"buffer: an object cannot be read ({error.strerror}); check the disk") from error

    def records(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """Give the whole records of a segment from `start` on; one whose header or meta is damaged is stepped over.
        The data are not looked at. Raises OSError."""
        with (self._folder / name).open("rb", buffering=0) as file:
            fd = file.fileno()
            size = min(os.fstat(fd).st_size, stop if stop is not None else 1 << 62)
            position: int | None = start
            while position is not None and position + _HEADER.size <= size:
                record = _record(fd, Place(name, position))
                if record is None:
                    position = _next_magic(fd, position + _ALIGN, size)
                elif record.end > size:
                    return
                else:
                    yield record
                    position = record.end

    def purge(self, place: Place) -> None:
        """Give a record's space back to the file system. Only its header stays."""
        with suppress(FileNotFoundError), (self._folder / place.segment).open("r+b", buffering=0) as file:
            record = _record(file.fileno(), place)
            if record is not None and not record.gone:
                header = _HEADER.unpack(os.pread(file.fileno(), _HEADER.size, place.position))
                gone = _header(place.segment, _GONE, header[1], b"", record.n_bytes, header[4])
                _write_all(file.fileno(), gone, place.position)
                _punch(file.fileno(), place.position + _HEADER.size, record.end)

    def size(self, name: str) -> int:
        """How long the file is. Raises OSError."""
        return (self._folder / name).stat().st_size

    def is_old(self, name: str) -> bool:
        """Whether it was last written to a while ago; its writer takes the lock right after it has made the file."""
        return time.time() - (self._folder / name).stat().st_mtime > _NEW_S

    def delete(self, name: str) -> None:
        """Remove a whole segment; none is no error."""
        (self._folder / name).unlink(missing_ok=True)


def _record(fd: int, place: Place) -> Record | None:
    """Read one record's header and meta; None: there is none, or it is damaged."""
    raw = os.pread(fd, _HEADER.size, place.position)
    if len(raw) < _HEADER.size or raw[:8] not in (_HERE, _GONE):
        return None
    magic, n_meta, version, n_bytes, sha256, seal = _HEADER.unpack(raw)
    if version != _VERSION or n_meta > _LONGEST_META or n_bytes > _LONGEST_DATA:
        return None
    gone = magic == _GONE
    start = place.position + _HEADER.size + n_bytes
    meta = b"" if gone else os.pread(fd, n_meta, start)
    if seal != _seal(place.segment, _HEADER.pack(magic, n_meta, version, n_bytes, sha256, b""), meta):
        return None
    return Record(place, n_bytes, sha256.hex(), _aligned(start + n_meta), json.loads(meta) if meta else {}, gone)


def _next_magic(fd: int, position: int, size: int) -> int | None:
    """Find where, after damage, the next record may begin."""
    while position < size:
        chunk = os.pread(fd, min(_AT_ONCE, size - position), position)
        found = min((at for magic in (_HERE, _GONE) if (at := _aligned_find(chunk, magic)) >= 0), default=-1)
        if found >= 0:
            return position + found
        position += max(len(chunk), _ALIGN) // _ALIGN * _ALIGN  # a magic never crosses this: both are aligned to 8
    return None


def _aligned_find(chunk: bytes, magic: bytes) -> int:
    at = chunk.find(magic)
    while at >= 0 and at % _ALIGN:
        at = chunk.find(magic, at + 1)
    return at


def _start_writing(fd: int, start: int, end: int) -> None:
    """Have the disk begin now, while the rest arrives: a quarter more instances a second (measured). A hint only."""
    _LIBC.sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(end - start), _WRITE_ONLY)


def _punch(fd: int, start: int, end: int) -> None:
    """Have the file system take the range back; one that cannot keeps it until the segment is deleted."""
    _LIBC.fallocate(fd, _PUNCH_HOLE, ctypes.c_int64(start), ctypes.c_int64(end - start))
