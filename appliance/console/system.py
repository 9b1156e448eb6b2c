# SPDX-License-Identifier: Apache-2.0
"""The view System: the machine, the configuration as it is, and what `nearscan check` says of an edited copy."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from appliance import config, environment
from appliance.console.answers import posted
from appliance.console.machine import Machine
from appliance.console.roles import needs
from appliance.errors import ConfigError
from appliance.settings import Model, Settings

_LONGEST = 200_000  # characters of an edited copy; the largest site's file has a tenth
_LONGEST_BYTES = 4 * _LONGEST
_PASSWORD = re.compile(r"(://[^\s/@:]*:)[^\s/@]+@")  # in an address


class _Edited(Model):
    text: str = Field(max_length=_LONGEST)


class System:
    """Answers about this machine and its settings."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.site.accepted_file
        self._machine = Machine(settings.site.data_dir, settings.buffer.reserve_gb)
        self._checking = asyncio.Lock()

    def routes(self) -> list[Route]:
        """Return the addresses."""
        return [
            Route("/api/machine", needs("viewer", self._show_machine)),
            Route("/api/config", needs("engineer", self._show_config)),
            Route("/api/config/check", needs("engineer", self._check), methods=["POST"]),
        ]

    async def _show_machine(self, _: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(self._machine.read))

    async def _show_config(self, _: Request) -> Response:
        """Answer with the file that the processes run with; what it names (tokens, keys) is not read."""
        try:
            raw = await asyncio.to_thread(config.read, self._file)
        except ConfigError as error:
            raise HTTPException(404, str(error)) from error
        return JSONResponse({"text": _PASSWORD.sub(r"\1***@", raw.decode(errors="replace"))})

    async def _check(self, request: Request) -> Response:
        text = (await posted(request, _Edited, _LONGEST_BYTES)).text
        if self._checking.locked():
            raise HTTPException(503, "config: another copy is being checked; try again")
        async with self._checking:
            return JSONResponse(await asyncio.to_thread(_checked, text.encode()))


def _checked(raw: bytes) -> dict[str, Any]:
    """Do what `nearscan check` does. Nothing is written."""
    try:
        settings = config.parse(raw, "copy")
    except ConfigError as error:
        return {"ok": False, "problems": str(error).splitlines(), "machine": []}
    machine = environment.problems(settings)
    return {"ok": not machine, "problems": [], "machine": machine}
