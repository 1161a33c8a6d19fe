# SPDX-License-Identifier: Apache-2.0
"""Somebody outside of the node, on a link of its own: a namespace that knows no way to pods."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Addresses there, and those of the node on that link.
OUTSIDE = {"192.0.2.2": "192.0.2.1", "fd00:192::2": "fd00:192::1"}
NETNS = Path("/run/netns/outside")

_MADE = """set -e
    ip netns add outside
    ip link add uplink type veth peer name eth0 netns outside
    ip addr add 192.0.2.1/24 dev uplink
    ip addr add fd00:192::1/64 dev uplink nodad
    ip link set uplink up
    ip -n outside addr add 192.0.2.2/24 dev eth0
    ip -n outside addr add fd00:192::2/64 dev eth0 nodad
    ip -n outside link set eth0 up"""
_UNMADE = "ip link del uplink; ip netns del outside; umount /run/netns"


@contextmanager
def outside() -> Iterator[None]:
    """The namespace is there within the block."""
    subprocess.run(["sh", "-c", _MADE], check=True)
    try:
        yield
    finally:
        subprocess.run(["sh", "-c", _UNMADE], check=True)
