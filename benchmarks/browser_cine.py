# SPDX-License-Identifier: Apache-2.0
"""The scanner of `browser.py`: a cine whose every picture holds its own number, in black and white blocks."""

from __future__ import annotations

import itertools
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.fft
from live import instrument

from appliance.mrd import messages as m
from appliance.mrd.header import encode_header_xml
from appliance.mri.phantom import NOISE_STD, cine_image, coil_sensitivities
from appliance.simulate.mri import Scanner, cine_encoding, cine_lines
from appliance.simulate.site import Site

RATE_HZ = 29.7  # not quite 30, so that images meet the browser's 60 animation frames a second at every phase
SIZE, BLOCK, N_BITS = 256, 16, 8
N_PICTURES = 73  # made beforehand: the first, with calibration lines where it is raw, and three heart beats
N_COILS, R, N_CALIBRATION = 8, 2, 24


def numbered(number: int) -> np.ndarray:
    """The picture of a moving chest, 0 to 1, (y, x), with `number` in binary blocks above it, and its complement."""
    bits = (number >> np.arange(N_BITS)[::-1]) & 1
    image = cine_image(number, (SIZE, SIZE)).copy()
    image[:BLOCK] = np.repeat(bits, SIZE // N_BITS)
    image[BLOCK : 2 * BLOCK] = np.repeat(1 - bits, SIZE // N_BITS)
    return image


def image_messages() -> list[bytes]:
    """MRD image messages, with noise."""
    head = np.zeros(1, m.IMAGE_HEADER)[0]
    head["field_of_view"] = (300, 300, 8)
    chance = np.random.default_rng(1)
    noise = chance.normal(scale=NOISE_STD, size=(2, N_PICTURES, SIZE, SIZE))
    pictures = [np.hypot(numbered(n) + noise[0, n], noise[1, n]).astype(np.float32) for n in range(N_PICTURES)]
    return [m.encode_image(head, b"", picture[np.newaxis, np.newaxis]) for picture in pictures]


def raw_messages() -> list[bytes]:
    """The same as the lines of 8 coils, R = 2; calibration lines with the first."""
    maps, chance = coil_sensitivities((SIZE, SIZE), N_COILS), np.random.default_rng(1)
    messages = []
    for n in range(N_PICTURES):
        kspace = scipy.fft.fftshift(
            scipy.fft.fft2(scipy.fft.ifftshift(numbered(n) * maps, (1, 2)), norm="ortho"), (1, 2)
        )
        noise = chance.normal(scale=NOISE_STD, size=(2, *kspace.shape))
        kspace = (kspace + noise[0] + 1j * noise[1]).astype(np.complex64)
        messages.append(m.encode_acquisitions(*cine_lines(kspace, n, R, N_CALIBRATION if n == 0 else 0)))
    return messages


class Cine:
    """A scanner that sends the first message once and then the others again and again, until stopped."""

    def __init__(self, site: Site, messages: list[bytes], raw: bool) -> None:
        self.sent_ns: list[int] = []  # when the last byte of each was handed over
        self._site, self._messages, self._over = site, messages, threading.Event()
        encoding = cine_encoding((N_COILS, SIZE, SIZE), R) if raw else cine_encoding((1, SIZE, SIZE), 1)
        self._start = m.encode_config_file("bench") + m.encode_header(encode_header_xml(encoding))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        instrument(30)
        scanner = Scanner("127.0.0.1", self._site.ports["mrd"], 60.0)
        scanner.send(self._start)
        begin_s = time.monotonic()
        for n in itertools.count():
            if self._over.wait(max(0.0, begin_s + n / RATE_HZ - time.monotonic())):
                break
            scanner.send(self._messages[n and 1 + (n - 1) % (len(self._messages) - 1)])
            self.sent_ns.append(time.monotonic_ns())
        scanner.finish()

    def age_ms(self, number: int, seen_ms: float) -> float:
        """How old the picture with this number was at `seen_ms` (CLOCK_MONOTONIC): the newest such one is meant."""
        n_sent = bisect_right(self.sent_ns, seen_ms * 1e6)
        n = n_sent - 1 - (n_sent - 1 - number) % (len(self._messages) - 1)
        return seen_ms - self.sent_ns[n] * 1e-6

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def scanning(site: Site, messages: list[bytes], raw: bool = False) -> Iterator[Cine]:
    cine = Cine(site, messages, raw)
    try:
        yield cine
    finally:
        cine.stop()
