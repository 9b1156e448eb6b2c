# SPDX-License-Identifier: Apache-2.0
"""Who may do what at the console: each role may all that the roles before it may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, cast

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

Role = Literal["viewer", "technologist", "engineer"]
ROLES: tuple[Role, ...] = ("viewer", "technologist", "engineer")
Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Person:
    """Who asks. A kiosk is a viewer without a name."""

    name: str
    role: Role


def person(connection: HTTPConnection) -> Person | None:
    """Return who asks, as the guard found; None: nobody has signed in."""
    return cast("Person | None", connection.scope.get("nearscan.person"))


def may(who: Person | None, role: Role) -> bool:
    """Whether `who` may do what takes `role`."""
    return who is not None and ROLES.index(who.role) >= ROLES.index(role)


def needs(role: Role, endpoint: Endpoint) -> Endpoint:
    """Return `endpoint`, answered only to who has `role`."""

    @wraps(endpoint)
    async def guarded(request: Request) -> Response:
        who = person(request)
        if may(who, role):
            return await endpoint(request)
        if who is None:
            return JSONResponse({"error": "console: nobody is signed in; sign in first"}, 401)
        return JSONResponse({"error": f"console: this needs the role {role}, yours is {who.role}; ask for it"}, 403)

    return guarded
