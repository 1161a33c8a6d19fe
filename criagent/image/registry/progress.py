# SPDX-License-Identifier: Apache-2.0
"""How far a pull is, and its stall clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Progress:
    """Watches one pull: `received` counts bytes, `stalled_s` is the time since the last one.

    The clock runs only while an answer of a server is awaited: a pull may also wait for another
    one that brings the same layer, for a worker, for the disk, or to ask a server again.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.expected = 0  # bytes of all layers that are to be received, once they are known
        self._last = time.monotonic()
        self._awaited: list[str] = []  # URLs of servers, one for each exchange

    @contextlib.contextmanager
    def receiving(self, server: str) -> Iterator[None]:
        """An exchange with the server of this URL."""
        if not self._awaited:
            self._last = time.monotonic()
        self._awaited.append(server)
        try:
            yield
        finally:
            self._awaited.remove(server)

    @property
    def awaited(self) -> list[str]:
        """URLs of the servers whose answers are awaited."""
        return sorted(set(self._awaited))

    def received(self, count: int) -> None:
        """`count` bytes were received."""
        self.bytes += count
        self._last = time.monotonic()

    def unpacked(self, count: int) -> None:
        """`count` bytes of layers were unpacked."""
        del count
        self._last = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the last byte that a server sent, 0 while none is asked."""
        return time.monotonic() - self._last if self._awaited else 0.0
