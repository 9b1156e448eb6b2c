# SPDX-License-Identifier: Apache-2.0
"""What this box had to do with lately: received series and live scans, what state each is in, its images and steps.

Rule: read only, and every query is bounded. Results hold identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from appliance.buffer.database import Database
from appliance.buffer.outbox import STATES

Kind = Literal["series", "scan"]
MOST_ENTRIES, MOST_IMAGES = 200, 500
_MOST_JOBS = 2000  # looked at for images that are not built yet
_SHOWN = ("PatientName", "PatientID", "StudyDescription", "SeriesDescription", "AccessionNumber")
_GOOD = ("sent", "verified", "committed")

_SERIES = (
    "SELECT s.id, s.last_s, i.created_s, s.modality, s.state, s.reason, s.n_instances, s.n_expected, d.attributes,"
    " i.peer, s.series_instance_uid FROM series s JOIN instances i ON i.id = s.first_instance_id"
    " JOIN descriptions d ON d.instance_id = s.first_instance_id"
)
_SCANS = (
    "SELECT s.id, s.started_s, s.ended_s, s.modality, s.protocol, s.pipeline, s.status, s.reason, s.n_frames,"
    " s.attributes, s.scan_id FROM scans s"
)
_OF = {  # the rows that say which instances belong to an entry
    "series": "FROM descriptions b WHERE b.series_instance_uid = ?",
    "scan": "FROM lineage b WHERE b.scan_id = ?",
}


def entries(database: Database, since_s: float, text: str = "", limit: int = MOST_ENTRIES) -> list[dict[str, Any]]:
    """Give what was active since then, newest first, with counts by delivery state; `text` is looked for in name, id,
    descriptions and modality."""
    limit = min(limit, MOST_ENTRIES)
    where, values = _where(text, "d.attributes", "s.modality")
    series = database.query(
        f"{_SERIES} WHERE s.last_s >= ?{where} ORDER BY s.last_s DESC LIMIT ?", [since_s, *values, limit]
    )
    where, values = _where(text, "s.attributes", "s.modality", "s.protocol")
    scans = database.query(
        f"{_SCANS} WHERE s.started_s >= ?{where} ORDER BY s.started_s DESC LIMIT ?", [since_s, *values, limit]
    )
    found = [_of_series(row) for row in series] + [_of_scan(row) for row in scans]
    found = sorted(found, key=lambda entry: -entry["last_s"])[:limit]
    jobs = _jobs(database)
    return [_finished(database, entry, jobs) for entry in found]


def entry(database: Database, kind: Kind, row_id: int) -> dict[str, Any] | None:
    """Give one entry; None: there is none."""
    rows = database.query(f"{_SERIES if kind == 'series' else _SCANS} WHERE s.id = ?", (row_id,))
    if not rows:
        return None
    found = _of_series(rows[0]) if kind == "series" else _of_scan(rows[0])
    return _finished(database, found, _jobs(database))


def images(database: Database, entry: Mapping[str, Any], offset: int = 0) -> list[dict[str, Any]]:
    """Give up to MOST_IMAGES instances of an entry as they came: id, kind, size, whether the bytes are still here."""
    rows = database.query(
        "SELECT i.id, i.n_bytes, i.purged_s IS NOT NULL, i.conflict, json_extract(l.detail, '$.kind'),"
        " json_extract(l.detail, '$.sequence'), json_extract(d.attributes, '$.NumberOfFrames')"
        " FROM instances i LEFT JOIN lineage l ON l.instance_id = i.id"
        " LEFT JOIN descriptions d ON d.instance_id = i.id"
        f" WHERE i.id IN (SELECT b.instance_id {_OF[entry['kind']]}) ORDER BY i.id LIMIT ? OFFSET ?",
        (entry["uid"], MOST_IMAGES, offset),
    )
    names = ("id", "n_bytes", "purged", "conflict", "kind", "sequence", "n_frames")
    return [
        dict(zip(names, (*row[:2], bool(row[2]), bool(row[3]), *row[4:6], _n(row[6])), strict=True)) for row in rows
    ]


def who_is(database: Database, instance_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """Give of each instance whose it is, its modality and what it is of."""
    rows = database.query(
        "SELECT i.id, coalesce(d.attributes, s.attributes, '{}'), coalesce(s.modality, ''), coalesce(s.protocol, '')"
        " FROM instances i LEFT JOIN descriptions d ON d.instance_id = i.id LEFT JOIN lineage l ON l.instance_id = i.id"
        " LEFT JOIN scans s ON s.scan_id = l.scan_id AND l.scan_id <> ''"
        f" WHERE i.id IN ({', '.join('?' * len(instance_ids))})",
        list(instance_ids),
    )
    found = {}
    for instance_id, attributes, modality, protocol in rows:
        who, said = _who(attributes), json.loads(attributes)
        what = protocol or who["SeriesDescription"] or who["StudyDescription"]
        found[instance_id] = {**who, "modality": modality or str(said.get("Modality", "")), "what": what}
    return found


def _n(text: str | None) -> int:
    """Give a number of frames; 1 where it makes no sense."""
    return int(text) if text and text.isdecimal() and len(text) < 7 else 1


def steps(database: Database, scan_id: str) -> list[dict[str, Any]]:
    """Give what was done to the images of a live scan: for each set of steps how many images, the steps, and by
    stage the mean and the longest time in ms."""
    rows = database.query(
        "SELECT json_extract(detail, '$.kind'), json_extract(detail, '$.steps'), json_extract(detail, '$.took_ms')"
        " FROM lineage WHERE scan_id = ? ORDER BY id DESC LIMIT ?",
        (scan_id, 4 * MOST_IMAGES),
    )
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, done, took in rows:
        group = found.setdefault((kind, done), {"kind": kind, "n_images": 0, "steps": json.loads(done), "took_ms": {}})
        group["n_images"] += 1
        for stage, ms in json.loads(took or "{}").items():
            times = group["took_ms"].setdefault(stage, {"n": 0, "mean": 0.0, "max": 0.0})
            times["n"] += 1
            times["mean"] += (ms - times["mean"]) / times["n"]
            times["max"] = max(times["max"], ms)
    return list(found.values())


def _where(text: str, attributes: str, *columns: str) -> tuple[str, list[str]]:
    """Give the condition that every word of `text` is somewhere, as SQL that follows another condition."""
    sql, values = "", list[str]()
    for word in text.split()[:8]:
        fields = [f"json_extract({attributes}, '$.{keyword}')" for keyword in _SHOWN] + list(columns)
        likes = _likes(word)
        terms = [f"coalesce({field}, '') LIKE ? ESCAPE '\\'" for field in fields for _ in likes]
        sql += f" AND ({' OR '.join(terms)})"
        values += likes * len(fields)
    return sql, values


def _likes(word: str) -> list[str]:
    """Give patterns for a word in any case: SQLite knows upper and lower of ASCII alone."""
    escaped = "".join(f"\\{c}" if c in "\\%_" else c for c in word)
    cases = {escaped, escaped.lower(), escaped.upper(), escaped.capitalize()}
    return [f"%{one}%" for one in ([escaped] if word.isascii() else sorted(cases))]


def _who(attributes: str) -> dict[str, str]:
    said = json.loads(attributes)
    return {keyword: str(said.get(keyword, "")) for keyword in _SHOWN}


def _of_series(row: tuple[Any, ...]) -> dict[str, Any]:
    row_id, last_s, first_s, modality, state, reason, n_instances, n_expected, attributes, peer, uid = row
    who = _who(attributes)
    return {
        "kind": "series",
        "id": row_id,
        "uid": uid,
        "modality": modality,
        "who": who,
        "source": peer,
        "what": who["SeriesDescription"] or who["StudyDescription"],
        "n_images": n_instances,
        "n_expected": n_expected,
        "first_s": first_s,
        "last_s": last_s,
        "ended_s": last_s,
        "receiving": state == "open",
        "reason": reason,
        "problem": "",
    }


def _of_scan(row: tuple[Any, ...]) -> dict[str, Any]:
    row_id, started_s, ended_s, modality, protocol, pipeline, status, reason, n_frames, attributes, scan_id = row
    return {
        "kind": "scan",
        "id": row_id,
        "uid": scan_id,
        "modality": modality,
        "who": _who(attributes),
        "source": pipeline,
        "what": protocol,
        "n_images": n_frames,
        "n_expected": 0,
        "first_s": started_s,
        "last_s": ended_s or started_s,
        "ended_s": ended_s,
        "receiving": ended_s is None,
        "reason": reason,
        "problem": f"{status}: {reason}" if status in ("aborted", "incomplete") else "",
    }


def _jobs(database: Database) -> dict[str, dict[str, int]]:
    """Give by scan how many images are not built yet, and how many cannot be."""
    found: dict[str, dict[str, int]] = {}
    rows = database.query(
        "SELECT scan, state, count(*) FROM (SELECT json_extract(meta, '$.scan.scan_id') AS scan, state FROM jobs"
        " LIMIT ?) GROUP BY scan, state",
        (_MOST_JOBS,),
    )
    for scan_id, state, n in rows:
        found.setdefault(scan_id or "", {})[state] = n
    return found


def _finished(database: Database, entry: dict[str, Any], jobs: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Add who is owed it, who works on it, its state and its times."""
    rows = database.query(
        f"SELECT d.destination, d.state, count(*), max(d.sent_s), max(d.changed_s) FROM deliveries d"
        f" WHERE d.instance_id IN (SELECT b.instance_id {_OF[entry['kind']]}) GROUP BY d.destination, d.state",
        (entry["uid"],),
    )
    owed: dict[str, dict[str, int]] = {}
    for destination, state, n, _, _ in rows:
        owed.setdefault(destination, dict.fromkeys(STATES, 0))[state] = n
    pipelines = database.query(
        "SELECT pipeline, state FROM pipeline_progress WHERE series_instance_uid = ? ORDER BY pipeline LIMIT 50",
        (entry["uid"],),
    )
    mine = jobs.get(entry["uid"], {}) if entry["kind"] == "scan" else {}
    n_of = {state: sum(counts[state] for counts in owed.values()) for state in STATES}
    working = any(state == "running" for _, state in pipelines) or bool(mine.get("queued") or mine.get("running"))
    n_stuck = mine.get("quarantined", 0)
    state = _state(entry, n_of, working, n_stuck)
    good, done = state in ("delivered", "committed"), [row for row in rows if row[1] in _GOOD]
    return {
        **entry,
        "state": state,
        "destinations": owed,
        "n_not_built": n_stuck,
        "pipelines": dict(pipelines),
        "delivered_s": max((row[3] or row[4] for row in done), default=None) if good else None,
        "committed_s": max((row[4] for row in done), default=None) if state == "committed" else None,
    }


def _state(entry: Mapping[str, Any], n_of: Mapping[str, int], working: bool, n_stuck: int) -> str:
    """Give one word: what needs a person first, then what is not done yet, then how far it came."""
    asked = (
        ("quarantined", n_of["quarantined"] or n_stuck),
        ("held", n_of["held"]),
        ("receiving", entry["receiving"]),
        ("processing", working),
        ("delivering", n_of["queued"] or n_of["sending"]),
        ("failed", entry["problem"]),
        ("kept", not sum(n_of.values())),
        ("delivered", n_of["sent"] or n_of["verified"]),
    )
    return next((state for state, is_so in asked if is_so), "committed")
