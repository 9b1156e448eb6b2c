# SPDX-License-Identifier: Apache-2.0
"""The DICOMweb service: routes, and what each answers (PS3.18 chapter 10)."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from appliance.buffer import Buffer
from appliance.buffer.commitment_requests import CommitmentRequests
from appliance.buffer.search import Held, Level, held, search
from appliance.dicom import commitment
from appliance.dicom.answer_commitment import why_not
from appliance.dicom.web.json_model import instance_json, wanted_keywords
from appliance.dicom.web.multipart import boundary_of
from appliance.dicom.web.stow import StowRequest, reference
from appliance.errors import ConfigError, PeerError, StorageError
from appliance.settings import ListenDicomweb

_JSON = "application/dicom+json"
_LONGEST_JSON = 4 << 20

log = logging.getLogger(__name__)


class DicomWeb:
    """What the service does, on one buffer. `told` hears what became of each instance, `index` has them indexed."""

    def __init__(
        self, settings: ListenDicomweb, buffer: Buffer, told: Callable[[str], None], index: Callable[[], object]
    ) -> None:
        self._settings, self._buffer, self._told, self._index = settings, buffer, told, index
        self._requests = CommitmentRequests(buffer.database)
        self._uploads: Counter[str] = Counter()  # that are running, by address
        self.n_requests = 0

    @property
    def n_uploads(self) -> int:
        """How many are running."""
        return self._uploads.total()

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
        try:
            if self._settings.token_file is not None:
                token = await run_in_threadpool(read_token, self._settings.token_file)
                scheme, _, given = request.headers.get("authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
                    return _refused(401, "a bearer token is needed that is ours", {"WWW-Authenticate": "Bearer"})
            return await go_on(request)
        except ConfigError as error:
            log.error("request refused: %s", error)
            return _refused(503, "the service cannot check tokens now")
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
        address, limits = request.client.host if request.client else "", self._settings
        if self.n_uploads >= limits.max_uploads or self._uploads[address] >= limits.max_per_address:
            return _refused(503, f"{self.n_uploads} uploads are running; try again later", {"Retry-After": "5"})
        self._uploads[address] += 1
        stow = StowRequest(self._buffer, boundary, request.path_params.get("study", ""), address, self._told)
        try:
            async for chunk in request.stream():
                await run_in_threadpool(stow.feed, chunk)
            stow.finish()
            await run_in_threadpool(self._index)
        except (PeerError, ClientDisconnect) as error:
            log.warning("STOW-RS from %s: %s", address, str(error) or "the connection was lost")
            _, body = stow.answer()
            return JSONResponse(body, 400, media_type=_JSON)
        finally:
            self._uploads -= Counter([address])
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
        return JSONResponse([instance_json(one, level, str(request.base_url)) for one in found], media_type=_JSON)

    async def retrieve(self, request: Request) -> Response:
        """WADO-RS of whole instances (10.4), each verified before it leaves."""
        uids = {name: str(value) for name, value in request.path_params.items()}
        found = await run_in_threadpool(held, self._buffer.database, uids)
        if not found:
            return _refused(404, "no such instance is here")
        boundary = secrets.token_hex(16)
        pieces = self._pieces(found, boundary)
        first = await run_in_threadpool(next, pieces)  # one that is altered is told by the status, if it is the first

        async def body() -> AsyncIterator[bytes]:
            yield bytes(first)
            async for piece in iterate_in_threadpool(pieces):
                yield bytes(piece)

        media = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return StreamingResponse(body(), headers={"Content-Type": media})

    def _pieces(self, found: Sequence[Held], boundary: str) -> Iterator[bytes | bytearray]:
        for one in found:
            data = self._buffer.segments.pieces(one.place, one.digest)
            head = f"\r\n--{boundary}\r\nContent-Type: application/dicom; transfer-syntax={one.transfer_syntax_uid}"
            yield f"{head}\r\n\r\n".encode() + next(data)
            yield from data
        yield f"\r\n--{boundary}--\r\n".encode()

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
        self._index()
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


def read_token(path: Path) -> str:
    """Give the bearer token of a file. Raises ConfigError; an empty one would let everybody in."""
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or "not ASCII"
        raise ConfigError(f"listen.dicomweb.token_file: {path} cannot be read ({told}); check it") from error
    if not token:
        raise ConfigError(f"listen.dicomweb.token_file: {path} is empty; write a token into it, or leave the key out")
    return token


def _refused(code: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return PlainTextResponse(f"{text}\n", code, headers)
