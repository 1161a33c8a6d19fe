# SPDX-License-Identifier: Apache-2.0
"""The stall clock of a pull."""

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
        self._last = time.monotonic()
        self._receiving = 0

    @contextlib.contextmanager
    def receiving(self) -> Iterator[None]:
        """An exchange with a server."""
        if not self._receiving:
            self._last = time.monotonic()
        self._receiving += 1
        try:
            yield
        finally:
            self._receiving -= 1

    def received(self, count: int) -> None:
        """`count` bytes were received or unpacked."""
        self.bytes += count
        self._last = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the last byte that a server sent, 0 while none is asked."""
        return time.monotonic() - self._last if self._receiving else 0.0
