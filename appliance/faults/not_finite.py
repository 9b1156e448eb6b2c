# SPDX-License-Identifier: Apache-2.0
"""Find pixels that are not numbers: no other rule can judge their image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding


def find_not_finite(image: NDArray[np.floating[Any]]) -> list[Finding]:
    """Return an alarm that counts the pixels of `image`, on the host, which are NaN or infinite; nothing if none is."""
    with np.errstate(all="ignore"):
        if np.isfinite(image.sum(dtype=np.float64)):
            return []
    n_bad = int(np.count_nonzero(~np.isfinite(image)))
    return [Finding("not_finite", f"{n_bad} pixels are not numbers; do not use this image", "alarm", n_bad)]
