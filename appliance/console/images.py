# SPDX-License-Identifier: Apache-2.0
"""Kept images as PNG: decoded one after the other in a child process with limited memory and time."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from appliance.buffer import ObjectError
from appliance.buffer.search import instance
from appliance.console.answers import number
from appliance.console.audit import Store
from appliance.dicom.image_decoder import Decoded, DecodeError, ImageDecoder
from appliance.imaging.grey_window import grey_window, to_grey
from appliance.imaging.png import png

_MEMORY_BYTES = 1 << 30
_TIMEOUT_S = 5.0
_LARGEST_BYTES = 128 << 20
_MOST_WAITING = 32
_MOST_FRAMES = 2000  # those before it are decoded too


class Images:
    """GET /api/images/ID?frame=N&size=PIXELS."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoder = ImageDecoder(_MEMORY_BYTES, _TIMEOUT_S)
        self._thread = ThreadPoolExecutor(1, "decode")  # the decoder is for one thread
        self._n_waiting = 0

    async def show(self, request: Request) -> Response:
        """Answer with one frame of one instance, at most `size` pixels wide and high."""
        instance_id, frame = int(request.path_params["id"]), number(request, "frame", 0, 0, _MOST_FRAMES)
        size = number(request, "size", 1024, 16, 2048)
        if self._n_waiting >= _MOST_WAITING:
            raise HTTPException(503, "console: too many images are asked for at this moment; try again")
        self._n_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            data, window = await loop.run_in_executor(self._thread, self._read, instance_id, frame, size)
        finally:
            self._n_waiting -= 1
        return Response(data, media_type="image/png", headers={"x-window": f"{window[0]:g} {window[1]:g}"})

    def close(self) -> None:
        """End the child process."""
        self._thread.shutdown(cancel_futures=True)
        self._decoder.close()

    def _read(self, instance_id: int, frame: int, size: int) -> tuple[bytes, tuple[float, float]]:
        buffer = self._store.existing()
        held = instance(buffer.database, instance_id) if buffer else None
        if buffer is None or held is None:
            raise HTTPException(404, f"console: the bytes of image {instance_id} are not on this box (any more)")
        if held.n_bytes > _LARGEST_BYTES:
            raise HTTPException(
                413, f"console: image {instance_id} has {held.n_bytes >> 20} MiB, too large to show here"
            )
        try:
            shown = self._frame(buffer.segments.read(held.place, held.digest), frame)
        except (DecodeError, ObjectError) as error:
            raise HTTPException(422, f"console: image {instance_id} cannot be shown: {error}") from error
        if shown is None:
            raise HTTPException(404, f"console: image {instance_id} has no frame {frame}")
        window = shown.window or grey_window(shown.image)
        return png(small(shown, window, size)), window

    def _frame(self, file: bytearray, number: int) -> Decoded | None:
        """Return one frame; None: there are fewer. One that is read to its end leaves the child for the next file."""
        shown: Decoded | None = None
        try:
            with contextlib.closing(self._decoder.decode(file)) as frames:
                for n, decoded in enumerate(frames):
                    if n > number:
                        break
                    shown = decoded if n == number else None
        except DecodeError:
            if shown is None:  # otherwise it is a later one that is wrong
                raise
        return shown


def small(shown: Decoded, window: tuple[float, float], size: int) -> NDArray[np.uint8]:
    """Return grey levels (y, x) with square pixels, at most `size` each way; nearest neighbours, not larger than it
    is."""
    height, width = shown.image.shape
    wide = high = 1.0
    if shown.affine is not None:
        wide, high = np.linalg.norm(shown.affine[:3, :2], axis=0)
    scale = min(size / max(width * wide, height * high), 1 / min(wide, high))
    n_x, n_y = (max(1, min(size, round(n * mm * scale))) for n, mm in ((width, wide), (height, high)))
    rows, columns = (np.arange(n) * of // n for n, of in ((n_y, height), (n_x, width)))
    grey = to_grey(shown.image[np.ix_(rows, columns)], window)
    return 255 - grey if shown.inverted else grey
