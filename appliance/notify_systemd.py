# SPDX-License-Identifier: Apache-2.0
"""Tell systemd how we are (sd_notify(3)); nothing happens when systemd did not start us."""

from __future__ import annotations

import os
import socket


def notify(text: str) -> None:
    """Send one message, e.g. "READY=1", "WATCHDOG=1" or "STATUS=all is well"."""
    try:
        from systemd import daemon
    except ImportError:
        _send(text)
    else:
        daemon.notify(text)


def _send(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(text.encode())
