# SPDX-License-Identifier: Apache-2.0
"""The DICOMweb service: routes, and what each answers (PS3.18 chapter 10)."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.buffer import Buffer
from appliance.buffer.commitment_requests import CommitmentRequests
from appliance.buffer.search import Level, held, search
from appliance.dicom import commitment
from appliance.dicom.answer_commitment import why_not
from appliance.dicom.web.json_model import instance_json, wanted_keywords
from appliance.dicom.web.multipart import boundary_of
from appliance.dicom.web.stow import StowRequest, reference
from appliance.errors import PeerError, StorageError

_JSON = "application/dicom+json"
_AT_ONCE = 1 << 18
_LONGEST_JSON = 4 << 20

log = logging.getLogger(__name__)


class DicomWeb:
    """What the service does, on one buffer."""

    def __init__(self, buffer: Buffer, token_file: Path | None, max_uploads: int, told: Callable[[str], None]) -> None:
        self._buffer, self._token_file, self._max_uploads, self._told = buffer, token_file, max_uploads, told
        self._requests = CommitmentRequests(buffer.database)
        self.uploads = self.n_requests = 0

    def app(self) -> Starlette:
        """The ASGI application."""
        get, post = ["GET"], ["POST"]
        routes = [
            Route("/studies", self.store, methods=post),
            Route("/studies/{study}", self.store, methods=post),
            Route("/studies", self.find, methods=get, name="studies"),
            Route("/series", self.find, methods=get, name="series"),
            Route("/instances", self.find, methods=get, name="instances"),
            Route("/studies/{study}/series", self.find, methods=get, name="series"),
            Route("/studies/{study}/instances", self.find, methods=get, name="instances"),
            Route("/studies/{study}/series/{series}/instances", self.find, methods=get, name="instances"),
            Route("/studies/{study}", self.retrieve, methods=get),
            Route("/studies/{study}/series/{series}", self.retrieve, methods=get),
            Route("/studies/{study}/series/{series}/instances/{instance}", self.retrieve, methods=get),
            Route("/commitment-requests/{transaction}", self.commit, methods=["GET", "POST"]),
        ]
        app = Starlette(routes=routes)
        app.add_middleware(BaseHTTPMiddleware, dispatch=self._guard)
        return app

    async def _guard(self, request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        self.n_requests += 1
        if self._token_file is not None:
            token = await run_in_threadpool(self._token_file.read_text)
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), token.strip().encode()):
                return _refused(401, "a bearer token is needed that is ours")
        try:
            return await go_on(request)
        except PeerError as error:
            return _refused(400, str(error))
        except StorageError as error:
            log.error("request refused: %s", error)
            return _refused(503, "the buffer cannot be used now")

    async def store(self, request: Request) -> Response:
        """STOW-RS (10.5)."""
        try:
            inner, boundary = boundary_of(request.headers.get("content-type", ""))
        except PeerError as error:
            return _refused(415, str(error))
        if inner not in ("application/dicom", ""):
            return _refused(415, f"parts of type application/dicom are taken, got {inner!r}")
        if self.uploads >= self._max_uploads:
            return _refused(503, f"{self._max_uploads} uploads are running; try again later", {"Retry-After": "5"})
        self.uploads += 1
        address = request.client.host if request.client else ""
        stow = StowRequest(self._buffer, boundary, request.path_params.get("study", ""), address, self._told)
        try:
            async for chunk in request.stream():
                await run_in_threadpool(stow.feed, chunk)
            await run_in_threadpool(stow.finish)
        except (PeerError, ClientDisconnect) as error:
            log.warning("STOW-RS from %s: %s", address, str(error) or "the connection was lost")
            _, body = stow.answer()
            return JSONResponse(body, 400, media_type=_JSON)
        finally:
            self.uploads -= 1
            await run_in_threadpool(stow.abandon)
        code, body = stow.answer()
        return JSONResponse(body, code, media_type=_JSON)

    async def find(self, request: Request) -> Response:
        """QIDO-RS (10.6)."""
        level: Level = "instances"
        last = request.url.path.rstrip("/").rpartition("/")[2]
        if last == "studies":
            level = "studies"
        elif last == "series":
            level = "series"
        wanted, offset, limit = wanted_keywords(request.query_params.multi_items())
        uids = {name: str(value) for name, value in request.path_params.items()}
        found = await run_in_threadpool(search, self._buffer.database, level, uids, wanted, offset, limit)
        if not found:
            return Response(status_code=204)
        return JSONResponse([instance_json(one, level) for one in found], media_type=_JSON)

    async def retrieve(self, request: Request) -> Response:
        """WADO-RS of whole instances (10.4), verified before they leave."""
        uids = {name: str(value) for name, value in request.path_params.items()}
        found = await run_in_threadpool(held, self._buffer.database, uids)
        if not found:
            return _refused(404, "no such instance is here")
        boundary = secrets.token_hex(16)

        async def body() -> AsyncIterator[bytes]:
            for one in found:
                data = await run_in_threadpool(self._buffer.segments.read, one.place, one.digest)
                yield (
                    f"\r\n--{boundary}\r\nContent-Type: application/dicom;"
                    f" transfer-syntax={one.transfer_syntax_uid}\r\n\r\n"
                ).encode()
                for at in range(0, len(data), _AT_ONCE):
                    yield bytes(data[at : at + _AT_ONCE])
            yield f"\r\n--{boundary}--\r\n".encode()

        media = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return StreamingResponse(body(), headers={"Content-Type": media})

    async def commit(self, request: Request) -> Response:
        """Storage commitment (10.14): answered at once, from what is on disk."""
        text = b""
        async for chunk in request.stream():
            text += chunk
            if len(text) > _LONGEST_JSON:
                return _refused(413, f"a request has {_LONGEST_JSON} bytes at most")
        transaction = request.path_params["transaction"]
        if request.method == "GET":
            return _refused(404, "this transaction was answered when it was asked; ask again")
        return JSONResponse(await run_in_threadpool(self._committed, transaction, text), media_type=_JSON)

    def _committed(self, transaction: str, text: bytes) -> dict[str, Any]:
        self._buffer.index()
        asked = commitment.read_json(text)
        here = self._requests.held([uid for _, uid in asked])
        reasons = {one: why_not(self._buffer, one[0], here.get(one[1], ())) for one in dict.fromkeys(asked)}
        good = [one for one, reason in reasons.items() if not reason]
        failed = [
            {**reference(*one), "00081197": {"vr": "US", "Value": [reason]}}
            for one, reason in reasons.items()
            if reason
        ]
        body: dict[str, Any] = {"00081195": {"vr": "UI", "Value": [transaction]}}
        if good:
            body["00081199"] = {"vr": "SQ", "Value": [reference(*one) for one in good]}
        if failed:
            body["00081198"] = {"vr": "SQ", "Value": failed}
        return body


def _refused(code: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", code, headers)
