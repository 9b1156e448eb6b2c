# SPDX-License-Identifier: Apache-2.0
"""What is looked for in an MRI acquisition. Defaults hold over simulated and real clean data; see docs/models.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.faults.detector import Rule
from appliance.frames import Finding

Floats = NDArray[np.floating[Any]]
Kspace = NDArray[np.complex64]
Bools = NDArray[np.bool_]
Found = tuple[float | None, list[Finding]]  # what a rule measured, None without a basis; and its findings

RULES: Mapping[str, Rule] = {
    "spike": Rule("a sample of k-space, times the largest of its neighbours", 4.0, 2.0),
    "zipper": Rule("an image column's signal in the outer lines, times that of the columns beside it", 3.0, 1.5),
    "coil_drop": Rule("part of its usual signal that a coil lost, against the other coils", 0.7, 0.3),
    "noisy_coil": Rule("a coil's noise, times its usual noise, against the other coils", 2.0, 1.3),
    "clipping": Rule("values at the same largest magnitude", 3.0, 3.0),
    "line_drop": Rule("signal of the lines beside one, times its own", 2.0, 1.2),
    "wrap": Rule("signal at both ends of the field of view along y, part of the body's", 0.6, 0.05),
    "motion": Rule("part of the signal of some lines that differs from the last frames, beside a shift", 0.1, 0.03),
    "odd_even": Rule("ghost of the phase between odd and even lines, part of the body's signal", 0.1, 0.02),
    "odd_even_first": Rule("the same by the frame alone, in a scan's first frames", 0.15, 0.15),
    "ghosting": Rule("signal half a field of view beside the body, part of the body's", 0.08, 0.03),
    "signal_drop": Rule("part of the usual signal that is lost", 0.25, 0.1),
    "slice_dropout": Rule("part of a slice's usual signal that is lost, against the other slices", 0.4, 0.1),
    "low_snr": Rule("loss against the usual SNR, dB", 6.0, 2.0),
    "displacement": Rule("shift against the last frames, pixels", 1.5, 0.5),
    "frozen": Rule("data that repeats the frame before"),
}
