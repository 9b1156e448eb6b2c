# SPDX-License-Identifier: Apache-2.0
"""The scans of live pipelines that keep their images: who and what, when each began and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.buffer import audit
from appliance.buffer.database import Database


@dataclass(frozen=True)
class NewScan:
    """A scan that begins. `attributes` is identity, by DICOM keyword: never log it."""

    scan_id: str
    pipeline: str
    modality: str
    protocol: str
    started_s: float
    attributes: Mapping[str, str] = field(repr=False)


def begin(database: Database, scan: NewScan) -> None:
    """Keep that it runs; one of the same id is the same scan, done again."""
    with database.transaction() as conn:
        conn.execute(
            "INSERT INTO scans (scan_id, pipeline, modality, protocol, attributes, started_s, status, reason, n_frames)"
            " VALUES (?, ?, ?, ?, ?, ?, '', '', 0) ON CONFLICT (scan_id) DO UPDATE SET started_s = excluded.started_s,"
            " ended_s = NULL, status = '', reason = '', n_frames = 0",
            (
                *(scan.scan_id, scan.pipeline, scan.modality, scan.protocol),
                *(json.dumps(dict(scan.attributes)), scan.started_s),
            ),
        )


def end(database: Database, scan_id: str, status: str, reason: str, n_frames: int, now: float) -> None:
    """Keep how it ended, also in the audit."""
    with database.transaction() as conn:
        conn.execute(
            "UPDATE scans SET ended_s = ?, status = ?, reason = ?, n_frames = ? WHERE scan_id = ?",
            (now, status, reason, n_frames, scan_id),
        )
        audit.append(conn, now, "scan end", scan_id, f"{status}, {n_frames} frames: {reason}")


def abandon(database: Database, pipeline: str, now: float) -> None:
    """Nothing of this pipeline runs yet: what did when it last ended was broken off."""
    with database.transaction() as conn:
        conn.execute(
            "UPDATE scans SET ended_s = ?, status = 'aborted', reason = 'the pipeline ended in its middle'"
            " WHERE pipeline = ? AND ended_s IS NULL",
            (now, pipeline),
        )
