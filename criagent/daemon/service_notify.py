# SPDX-License-Identifier: Apache-2.0
"""Readiness for the service manager (man 3 sd_notify): one datagram, no library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state` ("READY=1", "STOPPING=1") to $NOTIFY_SOCKET; nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),  # a manager that does not listen any more needs no answer
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.sendto(state.encode(), name)
