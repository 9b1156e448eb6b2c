# SPDX-License-Identifier: Apache-2.0
"""The rolling histograms of a model's data: one row for each pipeline, model and hour of the last 24.

Statistics, and not owed to anybody: a rebuilt database begins anew. Rule: no patient data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance.buffer.database import Database

WINDOW_H = 24


class DriftCounts:
    """What one model of one pipeline has kept. `bins` names its histograms: rows of others are not its own.

    The database is opened at first use. Raises StorageError wherever it is used.
    """

    def __init__(self, data_dir: Path, pipeline: str, model: str, bins: str) -> None:
        self._path = data_dir / "nearscan.sqlite"
        self._key = (pipeline, model, bins)
        self._database: Database | None = None

    def _opened(self) -> Database:
        if self._database is None:
            self._database = Database(self._path)
        return self._database

    def load(self, now: float) -> dict[int, tuple[int, list[int]]]:
        """Return {hour since 1970: (frames, counts)} of the last 24 hours."""
        rows = self._opened().query(
            "SELECT hour, n_frames, counts FROM drift WHERE pipeline = ? AND model = ? AND bins = ? AND hour > ?",
            (*self._key, now // 3600 - WINDOW_H),
        )
        return {hour: (n_frames, json.loads(counts)) for hour, n_frames, counts in rows}

    def save(self, hours: Mapping[int, tuple[int, Sequence[int]]], now: float) -> None:
        """Write `hours` in place of what was there; forget what is out of the window, whoever kept it."""
        with self._opened().transaction() as conn:
            for hour, (n_frames, counts) in hours.items():
                conn.execute(
                    "INSERT INTO drift (pipeline, model, bins, hour, n_frames, counts) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (pipeline, model, bins, hour) DO UPDATE SET"
                    " n_frames = excluded.n_frames, counts = excluded.counts",
                    (*self._key, hour, n_frames, json.dumps(counts)),
                )
            conn.execute("DELETE FROM drift WHERE hour NOT BETWEEN ? AND ?", (now // 3600 - WINDOW_H + 1, now // 3600))

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()
