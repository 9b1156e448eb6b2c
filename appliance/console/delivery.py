# SPDX-License-Identifier: Apache-2.0
"""The view Delivery: what is owed to whom, what is stuck and why, and what people do about it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance.buffer import Buffer, outbox_desk, today
from appliance.console.answers import posted
from appliance.console.audit import Store, acting
from appliance.console.newest import Newest
from appliance.console.roles import needs
from appliance.settings import Destination, DicomDestination, Model

_WAITING = ("quarantined", "held", "sending", "queued")  # what needs a person comes first
_MOST_ROWS = 100  # of one destination in one state
_MOST_IDS = 500
_KEPT_S = 1.0


class _Change(Model):
    """Which deliveries: by their numbers, or all of a destination in a state."""

    ids: list[int] = Field([], max_length=_MOST_IDS)
    destination: str = Field("", max_length=40)
    state: str = Field("", pattern="^(queued|held|quarantined)?$")


class Delivery:
    """Reads and changes the outbox, one question at a time, off the event loop."""

    def __init__(self, store: Store, newest: Newest, destinations: dict[str, Destination]) -> None:
        self._store, self._newest, self._destinations = store, newest, destinations
        self._reading = asyncio.Lock()
        self._answer: tuple[float, dict[str, Any]] = (-_KEPT_S, {})

    def routes(self) -> list[Route]:
        """Return the addresses."""
        return [
            Route("/api/delivery", needs("viewer", self._show)),
            Route("/api/delivery/{action}", needs("technologist", self._change), methods=["POST"]),
        ]

    async def _show(self, _: Request) -> Response:
        async with self._reading:
            if time.monotonic() - self._answer[0] > _KEPT_S:
                self._answer = (time.monotonic(), await asyncio.to_thread(self._read))
        return JSONResponse(self._answer[1])

    async def _change(self, request: Request) -> Response:
        action, wanted = request.path_params["action"], await posted(request, _Change)
        if action not in outbox_desk.ACTIONS:
            raise HTTPException(404, f"delivery: no such action; there are {', '.join(outbox_desk.ACTIONS)}")
        if not wanted.ids and not (wanted.destination and wanted.state):
            raise HTTPException(400, "delivery: say which: ids, or destination and state")
        selection = outbox_desk.Selection(tuple(wanted.ids), wanted.destination, wanted.state)
        async with self._reading:
            changed, left = await asyncio.to_thread(self._do, action, selection, acting(request))
            self._answer = (-_KEPT_S, {})
        return JSONResponse({"changed": changed, "left": left})

    def _do(self, action: str, selection: outbox_desk.Selection, person: str) -> tuple[int, int]:
        buffer = self._store.existing()
        return outbox_desk.change(buffer.database, action, selection, person, time.time()) if buffer else (0, 0)

    def _read(self) -> dict[str, Any]:
        buffer, now = self._store.existing(), time.time()
        told = self._newest.statuses().get("deliverer", {})
        states = told.get("destinations", {}) if told.get("state") != "silent" else {}
        known = outbox_desk.destinations(buffer.database) if buffer else []
        owed = outbox_desk.owed(buffer.database, now, known, _WAITING) if buffer else []
        gone = {one["destination"] for one in owed} - self._destinations.keys()
        names = [*self._destinations, *sorted(gone)]
        return {
            "time_s": now,
            "destinations": [self._destination(name, states.get(name, {}), owed) for name in names],
            "deliveries": _deliveries(buffer, names) if buffer else [],
            "not_built": outbox_desk.stuck_jobs(buffer.database, _MOST_ROWS) if buffer else [],
            "most": _MOST_ROWS,
        }

    def _destination(self, name: str, told: dict[str, Any], owed: list[dict[str, Any]]) -> dict[str, Any]:
        own = [one for one in owed if one["destination"] == name]
        return {
            "name": name,
            "address": _address(self._destinations.get(name)),
            "state": told.get("state", "unknown"),
            "failures": told.get("failures", 0),
            "last_error": told.get("last_error", ""),
            "next_try_s": told.get("next_try_s"),
            "waiting": {one["state"]: {key: one[key] for key in ("count", "bytes", "oldest_s")} for one in own},
            "done": {state: told.get(state, 0) for state in ("sent", "verified", "committed")},
        }


def _deliveries(buffer: Buffer, names: list[str]) -> list[dict[str, Any]]:
    found = [
        row
        for state in _WAITING
        for name in names
        for row in outbox_desk.deliveries(buffer.database, outbox_desk.Selection((), name, state), _MOST_ROWS)
    ]
    whose = today.who_is(buffer.database, [row["instance_id"] for row in found])
    wanted = ("id", "destination", "state", "priority", "attempts", "n_bytes", "created_s", "next_try_s", "last_error")
    return [{**{key: row[key] for key in wanted}, "who": whose.get(row["instance_id"], {})} for row in found]


def _address(destination: Destination | None) -> str:
    """Where it is, without what may be a secret."""
    if destination is None:
        return "not in the configuration"
    peer = destination.peer
    if isinstance(peer, DicomDestination):
        return f"{peer.ae_title} at {peer.host}:{peer.port}"
    scheme, _, rest = peer.url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
