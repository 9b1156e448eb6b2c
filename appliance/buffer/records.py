# SPDX-License-Identifier: Apache-2.0
"""What goes into the buffer and what is claimed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from appliance.buffer.segments import Payload, Place


@dataclass(frozen=True)
class NewJob:
    """Work to keep: `meta` as JSON (may hold identity: never log it) and bytes."""

    kind: str
    meta: Mapping[str, Any] = field(repr=False)
    payload: Payload = field(repr=False)
    priority: int = 5


@dataclass(frozen=True)
class Job:
    """Work that was claimed."""

    job_id: int
    kind: str
    meta: dict[str, Any] = field(repr=False)
    digest: str
    place: Place
    priority: int
    attempts: int  # before this one
    created_s: float


@dataclass(frozen=True)
class NewInstance:
    """A DICOM instance to keep as a Part 10 file, and to whom it is owed. `lineage` never holds identity."""

    data: Payload = field(repr=False)  # empty where it goes through a writer
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    origin: str = "produced"
    peer: str = ""
    association: str = ""  # which one brought it
    destinations: tuple[str, ...] = ()
    priority: int = 5
    scan_id: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """What became of an instance: `new` is False when the same bytes were here already."""

    instance_id: int
    new: bool
    conflict: bool  # this UID is here with other bytes; both are kept, ours is held back


@dataclass(frozen=True)
class Delivery:
    """One instance owed to one destination, claimed for sending."""

    delivery_id: int
    instance_id: int
    destination: str
    priority: int
    attempts: int  # before this one
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    digest: str
    n_bytes: int
    place: Place
