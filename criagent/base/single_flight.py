# SPDX-License-Identifier: Apache-2.0
"""Work that belongs to its callers: they share one run of it, and the last one to leave stops it.

`aio.Owners` is for work that belongs to its key and goes on without callers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from criagent.base.aio import settle

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    callers: int = 0


class SingleFlight(Generic[K, T]):
    """At most one run of the work of a key at a time.

    `ended` is called with the task of each run that has ended. `len` is the number of runs in
    progress, including those being cancelled.
    """

    def __init__(self, ended: Callable[[asyncio.Task[T]], None] | None = None) -> None:
        self._ended = ended
        self._flights: dict[K, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[T]] = set()  # also those that are being cancelled

    def __len__(self) -> int:
        return len(self._tasks)

    async def join(
        self, key: K, work: Callable[[], Coroutine[object, object, T]], *, name: str
    ) -> T:
        """The result of the run in progress for `key`, or of `work`, started as task `name`.

        Raises what the work raises, the same to all callers. A caller that is cancelled leaves at
        once. When no other is left, the work is cancelled, and the key is free for a new run.
        """
        flight = self._flights.get(key) or self._start(key, work, name)
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                flight.task.cancel()
                self._free(key, flight)

    async def close(self) -> None:
        """Cancel all work and return when it has ended."""
        await settle(*self._tasks)

    def _start(
        self, key: K, work: Callable[[], Coroutine[object, object, T]], name: str
    ) -> _Flight[T]:
        flight = _Flight(asyncio.create_task(work(), name=name))
        self._flights[key] = flight
        self._tasks.add(flight.task)

        def landed(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            self._free(key, flight)
            if not task.cancelled():
                task.exception()  # the callers raise it, if there are any left
            if self._ended is not None:
                self._ended(task)

        flight.task.add_done_callback(landed)
        return flight

    def _free(self, key: K, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
