# SPDX-License-Identifier: Apache-2.0
"""UIDs: ours are made of what they name, so that doing the work again names the same object."""

from __future__ import annotations

import hashlib
import json
import re
import uuid

IMPLEMENTATION_CLASS_UID = "2.25.213489640122186482389186219034612408745"
IMPLEMENTATION_VERSION_NAME = "NEARSCAN"

_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*))+")  # PS3.5 section 9.1


def is_uid(text: str) -> bool:
    """Whether `text` is a valid UID."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def uid_for(*parts: object) -> str:
    """Give the UID of whatever `parts` name: "2.25." and a UUID (PS3.5 B.2) of their SHA-256."""
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"
