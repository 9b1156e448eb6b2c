# SPDX-License-Identifier: Apache-2.0
"""Plain tables, sizes and ages for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_AGES = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Give aligned columns; numbers to the right."""
    texts = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(head))]
    right = [all(isinstance(row[n], int | float) for row in rows) for n in range(len(head))]
    lines = (
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, right, strict=True)
        )
        for row in texts
    )
    return "\n".join(line.rstrip() for line in lines)


def age(seconds: float) -> str:
    """Give a time span in its largest unit."""
    for unit_s, unit in _AGES:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return "0 s"


def size(n_bytes: float) -> str:
    """Give a size in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.4g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.4g} TB"
