# SPDX-License-Identifier: Apache-2.0
"""The share of the event loop that clients' frames may take.

A frame costs about the same whatever its size, and one read may hold thousands of the smallest
ones. So bytes are handled in chunks, and after a millisecond of work a connection rests until the
work of all connections is at most a quarter of the elapsed time. A connection that works less, such
as a typist's or a transfer in large frames, does not notice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

PIECE = 2 << 10  # bytes: under 350 of the smallest frames
_TIMES = 4.0
_TURN_S = 0.001


class Pace:
    """The account of all connections of a server. `now` returns seconds, `sleep` waits for some."""

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.now = now
        self._sleep = sleep
        self._free_at = 0.0

    async def rest(self, worked_s: float) -> None:
        """Wait for the turn of a connection that has worked for so long."""
        now = self.now()
        self._free_at = max(self._free_at, now - worked_s) + _TIMES * worked_s
        await self._sleep(max(self._free_at - now, 0))


class Turn:
    """One connection's share."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._worked_s = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        """Work begins; nothing is awaited before it ends."""
        self._began = self._pace.now()

    def __exit__(self, *_: object) -> None:
        self._worked_s += self._pace.now() - self._began

    async def over(self) -> None:
        """Rest, if this connection has worked long enough since its last rest."""
        if self._worked_s >= _TURN_S:
            worked_s, self._worked_s = self._worked_s, 0.0
            await self._pace.rest(worked_s)


def pieces(data: bytes) -> Iterator[bytes]:
    """`data` in chunks of at most 2 KiB."""
    if len(data) <= PIECE:
        yield data
        return
    for at in range(0, len(data), PIECE):
        yield data[at : at + PIECE]
