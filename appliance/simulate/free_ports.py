# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that are started in a moment."""

from __future__ import annotations

import contextlib
import random
import socket

# Below those that Linux gives to outgoing connections and to who binds port 0: nobody gets one by chance in between.
_PORTS = range(20_000, 32_768)


def free_ports(n: int) -> list[int]:
    """Return `n` TCP ports of 127.0.0.1 that nobody listens on now."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == n:
                break
            candidate = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                found.append(port)
    return found
