# SPDX-License-Identifier: Apache-2.0
"""A connection to a DICOMweb server: STOW-RS of one instance at a time, the bytes as they are kept (PS3.18 10.5), and
QIDO-RS to see whether it is there (PS3.18 10.6).

Rule: every failure is a DeliveryError; only an answer about this instance is ever permanent. What the server writes in
its answer is never repeated: it may name a patient.
"""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from appliance.dicom import part10, status
from appliance.errors import DeliveryError
from appliance.settings import DicomwebDestination

_AT_ONCE = 1 << 18
_LONGEST_ANSWER = 1 << 20
_SOP_INSTANCE = "00080018"
_FAILED, _REASON = "00081198", "00081197"  # Failed SOP Sequence, Failure Reason
_PERMANENT = {400: "it does not understand the request", 413: "too large for it", 415: "it does not take this type"}
_PART = (
    b"--%s\r\nContent-Type: application/dicom\r\n\r\n",
    b"\r\n--%s--\r\n",
)


class StowConnection:
    """Opened at the first request and kept. Use it from one thread, as a context manager."""

    def __init__(self, name: str, peer: DicomwebDestination) -> None:
        url = urlsplit(peer.url)
        self._peer = f"destination {name!r} at {url.hostname}:{url.port or ''}".rstrip(":")
        self._path = url.path.rstrip("/")
        self._token_file = peer.token_file
        host = url.hostname or ""
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=str(peer.ca) if peer.ca else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            self._http: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, url.port, timeout=peer.timeout_s, context=context
            )
        else:
            self._http = http.client.HTTPConnection(host, url.port, timeout=peer.timeout_s)

    def __enter__(self) -> StowConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def covers(self, contexts: Iterable[tuple[str, str]]) -> bool:
        """Nothing is negotiated: the server answers for each instance."""
        return True

    def takes(self, sop_class_uid: str, transfer_syntax_uid: str) -> bool:
        """Its answer says so."""
        return True

    def release(self) -> None:
        """Hang up."""
        self._http.close()

    abort = release

    def echo(self) -> None:
        """OPTIONS: is a server there that answers us? Raises DeliveryError."""
        code, _ = self._request("OPTIONS", f"{self._path}/studies", None, {})
        if code in (401, 403) or code >= 500:
            raise self._transient(code)

    def store(self, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, dataset: memoryview) -> int:
        """Send an encoded data set as a Part 10 file; gives the status. Raises DeliveryError."""
        boundary = secrets.token_hex(16).encode()
        head, tail = (part % boundary for part in _PART)
        head += part10.header(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary.decode()}',
            "Content-Length": str(len(head) + len(dataset) + len(tail)),
        }
        code, answer = self._request("POST", f"{self._path}/studies", _pieces(head, dataset, tail), headers)
        reason = _failure(answer)
        if reason is not None:
            raise status.error_for(reason, self._peer)
        if code in (200, 202):
            return status.SUCCESS
        if code in _PERMANENT:
            text = f"{self._peer}: STOW-RS was answered {code} ({_PERMANENT[code]}); look at the instance"
            raise DeliveryError(text, permanent=True)
        raise self._transient(code)

    def has_instance(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> bool:
        """QIDO-RS: whether it lists this very instance. Raises DeliveryError, permanent where it cannot search."""
        series = f"/studies/{quote(study_uid, safe='')}/series/{quote(series_uid, safe='')}"
        code = 404
        for below in (series if study_uid and series_uid else "", ""):  # 404: this study is not there, or no search
            path = f"{self._path}{below}/instances?SOPInstanceUID={quote(sop_instance_uid, safe='')}"
            code, answer = self._request("GET", path, None, {})
            if code != 404:
                break
        if code == 204:
            return False
        if code in (400, 404, 405, 501):
            raise DeliveryError(f"{self._peer}: QIDO-RS was answered {code}; allow it there", permanent=True)
        if code != 200:
            raise self._transient(code)
        try:
            found = json.loads(answer)
            return any(one[_SOP_INSTANCE]["Value"] == [sop_instance_uid] for one in found)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            text = f"{self._peer}: the answer to QIDO-RS cannot be read; will try again"
            raise DeliveryError(text, permanent=False) from error

    def _transient(self, code: int) -> DeliveryError:
        meaning = {401: "it does not know us; check token_file", 403: "it does not let us; check token_file"}
        text = meaning.get(code, "will try again")
        return DeliveryError(f"{self._peer}: was answered {code}: {text}", permanent=False)

    def _request(
        self, method: str, path: str, body: Iterator[memoryview] | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        try:
            if self._token_file:
                headers = {**headers, "Authorization": f"Bearer {self._token_file.read_text().strip()}"}
            self._http.request(method, path, body, {**headers, "Accept": "application/dicom+json"})
            answer = self._http.getresponse()
            data = answer.read(_LONGEST_ANSWER)
            if not answer.isclosed():
                self._http.close()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            told = getattr(error, "strerror", None) or type(error).__name__
            raise DeliveryError(f"{self._peer}: no answer: {told}; will try again", permanent=False) from error
        return answer.status, data


def _pieces(head: bytes, dataset: memoryview, tail: bytes) -> Iterator[memoryview]:
    yield memoryview(head)
    for at in range(0, len(dataset), _AT_ONCE):
        yield dataset[at : at + _AT_ONCE]
    yield memoryview(tail)


def _failure(answer: bytes) -> int | None:
    """Give the Failure Reason of the one instance that was sent; None: there is none, or none that can be read."""
    try:
        said: Any = json.loads(answer)
        return int(said[_FAILED]["Value"][0][_REASON]["Value"][0])
    except (ValueError, LookupError, TypeError):
        return None
