# SPDX-License-Identifier: Apache-2.0
"""What was wrong with a scan, in words for the technologist, bounded however bad it was."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

_MOST_LINES = 8
_MOST_TEXTS = 3


def name_lines(ky: NDArray[np.int64]) -> str:
    """Return "line 5" or "lines 5, 7, 9 … (40 in all)"."""
    names = ", ".join(str(int(line)) for line in ky[:_MOST_LINES])
    more = f" … ({len(ky)} in all)" if len(ky) > _MOST_LINES else ""
    return f"line{'s' if len(ky) != 1 else ''} {names}{more}"


class Faults:
    """Faults of one scan: the first few in full, all counted."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._n_of: Counter[str] = Counter()

    def add(self, kind: str, text: str) -> None:
        """Note a fault. Kinds other than "frame" are told once."""
        self._n_of[kind] += 1
        if len(self._texts) < _MOST_TEXTS and (kind == "frame" or self._n_of[kind] == 1):
            self._texts.append(text)

    @property
    def reason(self) -> str:
        """All of it in one line; empty when nothing was wrong."""
        n_more = sum(self._n_of.values()) - len(self._texts)
        return "; ".join(self._texts) + (f"; and {n_more} more faults" if n_more > 0 else "")
