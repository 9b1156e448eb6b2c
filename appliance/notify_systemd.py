# SPDX-License-Identifier: Apache-2.0
"""Tell systemd how we are (sd_notify(3)); nothing happens when systemd did not start us."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(text: str) -> None:
    """Send one message, e.g. "READY=1", "WATCHDOG=1" or "STATUS=all is well"."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        with contextlib.suppress(OSError):  # systemd is not reading: supervising goes on, its watchdog decides
            sender.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
