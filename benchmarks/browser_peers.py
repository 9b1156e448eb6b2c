# SPDX-License-Identifier: Apache-2.0
"""What `browser.py` measures the console beside and under: a motion JPEG server, and many viewers without a browser."""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from appliance.bus import Subscriber
from appliance.simulate.site import Site


def summary(values: list[float]) -> dict[str, float]:
    names = ("p50", "p95", "p99", "max")
    return dict(zip(names, np.percentile(values, [50, 95, 99, 100]).tolist(), strict=True))


# Chromium shows an image when it has seen the head of the next part, so that goes with the image: else each would be
# seen a whole image later.
_PART = b"--next\r\ncontent-type: image/jpeg\r\n\r\n"


class Mjpeg(BaseHTTPRequestHandler):
    """The peer: every preview as a JPEG of quality 90; a page with it at /."""

    run_dir: Path

    def do_GET(self) -> None:
        self.send_response(200)
        if self.path != "/stream":
            self.send_header("content-type", "text/html")
            self.end_headers()
            picture = b"<img id=image src=/stream width=800>" if self.path == "/" else b""
            self.wfile.write(b"<!doctype html><title>peer</title>" + picture)
            return
        self.send_header("content-type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wfile.write(_PART)
        subscriber = Subscriber(self.run_dir, [("pipeline-live", "preview")])
        while (message := subscriber.receive(5)) is not None:
            header, pixels = message[2:]
            if header.get("state") == "live":
                self._send(Image.frombytes("L", (header["width"], header["height"]), pixels))
        subscriber.close()

    def _send(self, image: Image.Image) -> None:
        out = io.BytesIO()
        image.save(out, "JPEG", quality=90)
        self.wfile.write(out.getvalue() + b"\r\n" + _PART)

    def log_message(self, *_: object) -> None:
        pass


def be_mjpeg(run_dir: Path, pipe: Connection) -> None:
    handler = type("Handler", (Mjpeg,), {"run_dir": run_dir})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def mjpeg(site: Site) -> Iterator[str]:
    """Run the peer; give its address."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=be_mjpeg, args=(site.settings.site.sockets, theirs), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{ours.recv()}/"
    process.terminate()
    process.join()


class Viewers:
    """Pages without a browser: they note each image, its number and its age when it came, and say that they saw it."""

    def __init__(self, url: str, n_reading: int, n_stalled: int) -> None:
        self.url, self.n_reading, self.n_stalled = url, n_reading, n_stalled
        self.ages_ms: list[list[float]] = [[] for _ in range(n_reading)]
        self.numbers: list[list[int]] = [[] for _ in range(n_reading)]
        self.n_dropped = 0  # stalled ones that the console hung up on

    async def run(self, seconds: float) -> None:
        tasks = [asyncio.create_task(self._read(n)) for n in range(self.n_reading)]
        tasks += [asyncio.create_task(self._stall(n)) for n in range(self.n_stalled)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, n: int) -> None:
        async with connect(self.url, compression=None, proxy=None, max_size=None) as viewer:
            async for data in viewer:
                now_ns = time.monotonic_ns()
                (n_bytes,) = struct.unpack_from("<I", data)
                header = json.loads(data[4 : 4 + n_bytes])
                await viewer.send('{"seen": true}')
                if header["state"] == "live":
                    self.numbers[n].append(header["sequence"])
                    self.ages_ms[n].append((now_ns - header["received_ns"]) * 1e-6)

    async def _stall(self, n: int) -> None:
        """Every second one reads and never says so; the others do not even read. Whoever is dropped comes again."""
        while True:
            async with connect(self.url, compression=None, proxy=None, max_size=None, max_queue=1) as viewer:
                try:
                    if n % 2:
                        viewer.transport.pause_reading()
                        await asyncio.sleep(3600)
                    async for _ in viewer:
                        pass
                except ConnectionClosed:
                    pass
            self.n_dropped += 1


def be_viewers(url: str, n_reading: int, n_stalled: int, seconds: float, pipe: Connection) -> None:
    viewers = Viewers(url, n_reading, n_stalled)
    asyncio.run(viewers.run(seconds))
    lost = []
    for numbers in viewers.numbers:
        came = set(numbers)
        lost.append(len(range(min(came), max(came) + 1)) - len(came) if came else -1)
    ages = [age for own in viewers.ages_ms for age in own[30:]]  # the first second is the start of fifty connections
    pipe.send({"images": sum(map(len, viewers.numbers)), "lost": lost, "ages": ages, "dropped": viewers.n_dropped})


def view(site: Site, n_reading: int, n_stalled: int, seconds: float) -> dict[str, Any]:
    ours, theirs = multiprocessing.Pipe()
    url = f"ws://127.0.0.1:{site.ports['console']}/ws/live?pipeline=live"
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=be_viewers, args=(url, n_reading, n_stalled, seconds, theirs))
    process.start()
    found = ours.recv()
    process.join()
    return {
        "reading": n_reading,
        "stalled": n_stalled,
        "images": found["images"],
        "images_lost_in_all": sum(found["lost"]),
        "most_lost_by_one": max(found["lost"]),
        "age_ms": summary(found["ages"]),
        "stalled_dropped": found["dropped"],
    }
