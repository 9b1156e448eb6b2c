# SPDX-License-Identifier: Apache-2.0
"""The gate before a model goes live: does this engine here give the answers of training, in time?"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from appliance.arrays import to_device, to_host
from appliance.errors import ModelError
from appliance.frames import Array
from appliance.inference.backend import Precision, Session
from appliance.inference.card import Card, Model
from appliance.inference.golden import Arrays

Clock = Callable[[], int]  # nanoseconds

N_TIMED = 20  # runs a round; p95 is the second slowest
N_ROUNDS, N_GOOD_ROUNDS = 5, 2  # other work disturbs a round now and then; two must be in time


now_ns: Clock = time.monotonic_ns


class Parity(NamedTuple):
    """What the gate measured."""

    max_error: float  # in units of `tolerance`'s scale, see the card
    tolerance: float
    p95_ms: float


def check_parity(session: Session, model: Model, precision: Precision, clock: Clock | None = None) -> Parity:
    """Run every golden case and the time trial, twice; `clock` is there for tests.

    Raises
    ------
    ModelError
        When the card has no tolerance at this precision, an answer is off by more than it, or the 95th percentile of
        the run time at the card's typical size is over its deadline.
    """
    tolerance = model.card.golden.tolerance.get(precision)
    if tolerance is None:
        raise ModelError(f"the card gives no tolerance for {precision}")
    worst = 0.0
    for case in model.golden * 2:
        found = run_on_host(session, case.inputs)
        error = largest_error(case.inputs, found, case.outputs)
        if not error <= tolerance:  # also when it is NaN
            raise ModelError(f"golden case {case.name!r} missed by {error:.3g}, tolerance {tolerance:.3g}")
        worst = max(worst, error)
    return Parity(worst, tolerance, _p95_in_time_ms(session, model.card, clock or now_ns))


def largest_error(inputs: Arrays, found: Arrays, expected: Arrays) -> float:
    """Return the largest absolute difference, in units of the larger of 1 and the largest value that is there.

    Raises ModelError when the outputs' number or shapes differ.
    """
    shapes = [array.shape for array in found], [array.shape for array in expected]
    if shapes[0] != shapes[1]:
        raise ModelError(f"outputs have shapes {shapes[0]}, expected {shapes[1]}")
    largest_input = max(float(np.max(np.abs(array))) for array in inputs)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, largest_input, float(np.max(np.abs(other))))
        worst = np.maximum(worst, np.max(np.abs(one - other)) / scale)  # NaN stays NaN
    return float(worst)


def run_on_host(session: Session, arrays: Arrays) -> Arrays:
    """Run host arrays, wherever the session takes them; the outputs are on the host, so the run is over."""
    given: tuple[Array, ...] = tuple(to_device(a) for a in arrays) if session.takes == "device" else arrays
    return tuple(to_host(array) for array in session.run(*given))


def _p95_in_time_ms(session: Session, card: Card, clock: Clock) -> float:
    """Return the 95th percentile of the slower of two good rounds."""
    rng = np.random.default_rng(1)
    arrays = tuple(rng.random(shapes.typical, np.float32) for shapes in card.signature.inputs.values())
    run_on_host(session, arrays)  # makes the kernels for this size
    rounds: list[float] = []
    for _ in range(N_ROUNDS):
        rounds.append(_p95_ms(session, arrays, clock))
        good = [p95 for p95 in rounds if p95 <= card.deadline_ms]
        if len(good) == N_GOOD_ROUNDS:
            return max(good)
    raise ModelError(
        f"too slow here: {min(rounds):.1f} ms at {card.input.typical_px} x {card.input.typical_px} (95th percentile, "
        f"best of {N_ROUNDS} rounds), the card's deadline is {card.deadline_ms:g} ms"
    )


def _p95_ms(session: Session, arrays: Arrays, clock: Clock) -> float:
    times = []
    for _ in range(N_TIMED):
        start = clock()
        run_on_host(session, arrays)
        times.append((clock() - start) / 1e6)
    return float(np.percentile(times, 95))
