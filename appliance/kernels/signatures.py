# SPDX-License-Identifier: Apache-2.0
"""The compiled kernels, and what each takes, in the letters of Python's `struct`: P address, i int32, f float32."""

from __future__ import annotations

from pathlib import Path

FATBIN = Path(__file__).with_name("kernels.fatbin")
SIGNATURES = {
    "to_model": "PPffiiiiP",  # image, level_map, level, scale, n_y, n_x, n_rows, n_columns, out
    # image, noise, level_map, level, scale, strength, most_sigma, low, gain, n_y, n_x, n_columns,
    # out, pixels, n_clipped
    "from_model": "PPPffffffiiiPPP",
    "unmix": "PPPiiiiP",  # weights, folded, line_shift, n_coils, fold, n_rows, n_x, out
}
