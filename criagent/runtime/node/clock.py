# SPDX-License-Identifier: Apache-2.0
"""The runtime's time and ids."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Clock:
    """Nanoseconds since the epoch, strictly increasing for the life of the daemon.

    The kubelet orders objects by created_at, so no two may share one, and a wall clock that is set
    back must not reverse the order. `floor_ns` is the newest stored time.
    """

    def __init__(self, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._wall_ns = wall_ns
        self._last_ns = 0

    def raise_floor(self, floor_ns: int) -> None:
        """Never return `floor_ns` or less from now on."""
        self._last_ns = max(self._last_ns, floor_ns)

    def now_ns(self) -> int:
        """The wall clock, or the last result plus one."""
        self._last_ns = max(self._wall_ns(), self._last_ns + 1)
        return self._last_ns


def new_id() -> str:
    """64 random lower-case hex digits, the form of sandbox and container ids."""
    return secrets.token_hex(32)


def boot_id() -> str:
    """The kernel's id of this boot; rows of another boot have no living process (man 5 proc)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Identity(NamedTuple):
    """What a new object begins with."""

    id: str
    at_ns: int
    boot_id: str


class Identities:
    """Identities of new sandboxes and containers."""

    def __init__(self, clock: Clock, boot_id: str, new_id: Callable[[], str] = new_id) -> None:
        self._clock = clock
        self._boot_id = boot_id
        self._new_id = new_id

    def next(self) -> Identity:
        """One that no other object has."""
        return Identity(self._new_id(), self._clock.now_ns(), self._boot_id)

    def now_ns(self) -> int:
        """The clock's time."""
        return self._clock.now_ns()
