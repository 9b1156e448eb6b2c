# SPDX-License-Identifier: Apache-2.0
"""UIDs: those of the standard, how they are written, and ours.

Ours are made of what they name, so that doing the work again names the same object.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"  # VR, little endian
BIG_ENDIAN = "1.2.840.10008.1.2.2"
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"
MPPS = "1.2.840.10008.3.1.2.3.3"

IMPLEMENTATION_CLASS_UID = "2.25.213489640122186482389186219034612408745"
IMPLEMENTATION_VERSION_NAME = "NEARSCAN"

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")  # PS3.5 section 9.1


def is_uid(text: str) -> bool:
    """Whether `text` is a valid UID."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def to_text(value: bytes) -> str:
    """Give a UID of a data set or command as text, without its padding."""
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def to_bytes(uid: str) -> bytes:
    """Encode a UID, padded to even length (PS3.5 section 9.1)."""
    value = uid.encode("ascii", "replace")
    return value + b"\0" * (len(value) % 2)


def uid_for(*parts: object) -> str:
    """Give the UID of whatever `parts` name: "2.25." and a UUID (PS3.5 B.2) of their SHA-256."""
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
