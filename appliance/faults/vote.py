# SPDX-License-Identifier: Apache-2.0
"""Three of five frames make an alarm, and five good ones end it."""

from __future__ import annotations

from collections import deque

WINDOW_FRAMES = 5
NEEDED_FRAMES = 3


class Vote:
    """Of one fault: whether it is an alarm now. It begins with 3 hits among 5 frames and ends when 5 have none."""

    def __init__(self) -> None:
        self._hits: deque[bool] = deque(maxlen=WINDOW_FRAMES)
        self.alarming = False

    def add(self, hit: bool) -> None:
        """Take the next frame."""
        self._hits.append(hit)
        self.alarming = self.n_hits >= NEEDED_FRAMES or (self.alarming and self.n_hits > 0)

    @property
    def n_hits(self) -> int:
        """Of the last five frames."""
        return sum(self._hits)
