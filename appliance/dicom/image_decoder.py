# SPDX-License-Identifier: Apache-2.0
"""Decodes images in a child process: what a hostile file asks for, in memory or in time, ends the child and no more."""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.frames import Affine

LENGTH, HEAD = struct.Struct("<Q"), struct.Struct("<IQ")  # what stands before each message; see decode_images
_AT_ONCE = 1 << 20
_LONGEST_HEADER = 1 << 16


class DecodeError(PeerError):
    """This file gives no more images; the next may."""


@dataclass(frozen=True)
class Decoded:
    """One frame of one file."""

    image: NDArray[np.float32]  # (y, x), rescaled
    affine: Affine | None  # None: the file does not say where it is
    inverted: bool  # the lowest value is white
    window: tuple[float, float] | None  # values that are black and white; None: the file does not say


class ImageDecoder:
    """One child at a time, started when it is needed. For one thread."""

    def __init__(self, memory_bytes: int, timeout_s: float) -> None:
        self._memory_bytes, self._timeout_s = memory_bytes, timeout_s
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, file: bytes | bytearray) -> Generator[Decoded, None, None]:
        """Give the frames as they are decoded, each within the time. Raises DecodeError."""
        try:
            child = self._ready()
            self._write(child, LENGTH.pack(len(file)))
            self._write(child, file)
            while (header := self._header(child)) and "end" not in header[0]:
                yield self._frame(child, *header)
        except (GeneratorExit, DecodeError):
            self.close()  # what is in the pipe belongs to nobody
            raise
        if header[0]["end"]:
            raise DecodeError(f"decode: {header[0]['end']}")

    def close(self) -> None:
        """End the child. Again is no error."""
        child, self._child = self._child, None
        if child and child.stdin and child.stdout:
            child.kill()
            child.wait()
            child.stdin.close()
            child.stdout.close()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            # -P: what lies in the working directory is not imported. Its stderr could quote the file.
            command = [sys.executable, "-P", "-m", "appliance.dicom.decode_images"]
            self._child = subprocess.Popen(
                [*command, str(self._memory_bytes), str(max(1, round(self._timeout_s)))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
            )
            assert self._child.stdin is not None
            os.set_blocking(self._child.stdin.fileno(), False)
        return self._child

    def _wait(self, fd: int, event: int, deadline: float) -> None:
        waiting = select.poll()
        waiting.register(fd, event)
        if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise DecodeError(f"decode: it took more than {self._timeout_s:g} s")

    def _write(self, child: subprocess.Popen[bytes], data: bytes | bytearray) -> None:
        assert child.stdin is not None
        deadline, view = time.monotonic() + self._timeout_s, memoryview(data)
        try:
            while view:
                self._wait(child.stdin.fileno(), select.POLLOUT, deadline)
                view = view[os.write(child.stdin.fileno(), view[:_AT_ONCE]) :]
        except BrokenPipeError as error:
            raise DecodeError("decode: it needs more memory or time than it may have") from error

    def _read(self, child: subprocess.Popen[bytes], n_bytes: int, deadline: float) -> bytearray:
        assert child.stdout is not None
        data = bytearray(n_bytes)
        view = memoryview(data)
        while view:
            self._wait(child.stdout.fileno(), select.POLLIN, deadline)
            n = os.readv(child.stdout.fileno(), [view])
            if not n:
                raise DecodeError("decode: it needs more memory or time than it may have")
            view = view[n:]
        return data

    def _header(self, child: subprocess.Popen[bytes]) -> tuple[dict[str, Any], int, float]:
        deadline = time.monotonic() + self._timeout_s
        n_header, n_pixels = HEAD.unpack(self._read(child, HEAD.size, deadline))
        if n_header > _LONGEST_HEADER or n_pixels > self._memory_bytes:
            raise DecodeError("decode: an answer longer than any can be")
        return json.loads(self._read(child, n_header, deadline)), n_pixels, deadline

    def _frame(self, child: subprocess.Popen[bytes], header: dict[str, Any], n_pixels: int, deadline: float) -> Decoded:
        image = np.frombuffer(self._read(child, n_pixels, deadline), np.float32).reshape(header["shape"])
        affine = None if header["affine"] is None else np.array(header["affine"], np.float64)
        return Decoded(image, affine, header["inverted"], header["window"] and tuple(header["window"]))
