# SPDX-License-Identifier: Apache-2.0
"""How the console takes JSON and how it says that something is wrong: {"error": words}, never what was sent."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_LONGEST_BYTES = 65_536

M = TypeVar("M", bound=BaseModel)


async def _body(request: Request, most_bytes: int) -> bytes:
    taken = bytearray()
    async for part in request.stream():
        taken += part
        if len(taken) > most_bytes:
            raise HTTPException(413, f"console: at most {most_bytes} bytes are taken here")
    return bytes(taken)


async def posted(request: Request, model: type[M], most_bytes: int = _LONGEST_BYTES) -> M:
    """Return the JSON that was posted as `model`. Raises HTTPException 400 or 413."""
    try:
        return model.model_validate_json(await _body(request, most_bytes), strict=True)
    except ValidationError as error:
        wrong = [(".".join(map(str, one["loc"])), one["msg"]) for one in error.errors(include_input=False)]
        raise HTTPException(400, "; ".join(f"{where or 'body'}: {what}" for where, what in wrong[:5])) from None


def number(request: Request, name: str, otherwise: int, least: int, most: int) -> int:
    """Return a whole number of the query. Raises HTTPException 400."""
    given = request.query_params.get(name, str(otherwise))
    if not given.isdecimal() or len(given) > 9 or not least <= int(given) <= most:
        raise HTTPException(400, f"{name}: a whole number from {least} to {most} is expected")
    return int(given)


async def refused(_: Request, error: Exception) -> Response:
    """Answer for HTTPException."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def unavailable(_: Request, error: Exception) -> Response:
    """Answer for StorageError: it says itself what to do."""
    return JSONResponse({"error": str(error)}, 503)
