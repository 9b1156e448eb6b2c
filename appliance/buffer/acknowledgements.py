# SPDX-License-Identifier: Apache-2.0
"""Who has seen which alarm. It counts while the alarm stands with the same words."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.buffer import audit
from appliance.buffer.database import Database


@dataclass(frozen=True)
class Acknowledged:
    """One alarm of one process that somebody has seen."""

    process: str
    key: str
    text: str
    person: str
    at_s: float


def acknowledged(database: Database) -> list[Acknowledged]:
    """Give all."""
    return [
        Acknowledged(*row) for row in database.query("SELECT process, key, text, person, at_s FROM acknowledgements")
    ]


def acknowledge(database: Database, seen: Acknowledged) -> None:
    """Keep that somebody has seen an alarm, also in the audit."""
    with database.transaction() as conn:
        conn.execute(
            "INSERT OR REPLACE INTO acknowledgements (process, key, text, person, at_s) VALUES (?, ?, ?, ?, ?)",
            (seen.process, seen.key, seen.text, seen.person, seen.at_s),
        )
        audit.append(
            conn, seen.at_s, "alarm acknowledged", f"{seen.process} {seen.key}", f"{seen.text} by {seen.person}"
        )


def forget(database: Database, gone: list[Acknowledged]) -> None:
    """Drop those whose alarm is over or has other words: it is loud when it comes back."""
    with database.transaction() as conn:
        conn.executemany(
            "DELETE FROM acknowledgements WHERE process = ? AND key = ? AND at_s = ?",
            [(one.process, one.key, one.at_s) for one in gone],
        )
