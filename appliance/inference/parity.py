# SPDX-License-Identifier: Apache-2.0
"""The gate before a model goes live: does this engine, on this machine, give the answer it gave at training?"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from appliance.arrays import to_device, to_host
from appliance.errors import ModelError
from appliance.inference.backend import Precision, Session
from appliance.inference.card import Model


class Parity(NamedTuple):
    """What the gate measured."""

    max_error: float
    tolerance: float
    milliseconds: float


def check_parity(session: Session, model: Model, precision: Precision) -> Parity:
    """Run the golden input and compare with the golden output.

    Raises
    ------
    ModelError
        When the card has no tolerance at this precision, or the largest absolute error is above it.
    """
    tolerance = model.card.golden.tolerance.get(precision)
    if tolerance is None:
        raise ModelError(f"the card gives no tolerance for {precision}")
    array = to_device(model.golden_input) if session.takes == "device" else model.golden_input
    start = time.perf_counter()
    output = to_host(session.run(array))
    milliseconds = (time.perf_counter() - start) * 1e3
    if output.shape != model.golden_output.shape:
        raise ModelError(f"golden output has shape {model.golden_output.shape}, the engine gave {output.shape}")
    max_error = float(np.max(np.abs(output - model.golden_output)))
    if not max_error <= tolerance:  # also when it is NaN
        raise ModelError(f"golden output missed by {max_error:.3g}, tolerance {tolerance:.3g}")
    return Parity(max_error, tolerance, milliseconds)
