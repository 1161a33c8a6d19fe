# SPDX-License-Identifier: Apache-2.0
"""Hosts that could not be connected, across all pulls, and one dial at a time to unproven ones.

A host that drops packets costs its dial timeout once: concurrent requests wait for the first
attempt and share its failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from criagent.base.aio import KeyedLocks
from criagent.base.errors import RegistryUnreachableError
from criagent.image.registry.retry import Clock
from criagent.image.registry.urls import Origin

MEMORY_S = 60.0
_REMEMBERED = 1000  # origins: redirects name any number of them


@dataclass(frozen=True, slots=True, eq=False)
class _Failure:
    at: float
    text: str


class Reachability:
    """What is known of hosts, for `MEMORY_S` after it was learned."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._failures: dict[Origin, _Failure] = {}
        self._connected: dict[Origin, float] = {}
        self._dials = KeyedLocks()

    def failed_lately(self, origin: Origin) -> bool:
        """Whether the last connection to `origin` failed, a minute ago at most."""
        failure = self._failures.get(origin)
        return failure is not None and self._clock.monotonic() - failure.at < MEMORY_S

    def failed(self, origin: Origin, text: str) -> None:
        """A connection to `origin` did not come about."""
        self._connected.pop(origin, None)
        self._failures.pop(origin, None)
        self._failures[origin] = _Failure(self._clock.monotonic(), text)
        if len(self._failures) > _REMEMBERED:
            del self._failures[next(iter(self._failures))]  # the oldest

    def connected(self, origin: Origin) -> None:
        """There is a connection to `origin`."""
        self._failures.pop(origin, None)
        self._connected.pop(origin, None)
        self._connected[origin] = self._clock.monotonic()
        if len(self._connected) > _REMEMBERED:
            del self._connected[next(iter(self._connected))]

    @contextlib.asynccontextmanager
    async def dial(self, origin: Origin) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Around a request to `origin`: yields what to call once there is a connection.

        The lock covers the connecting alone, which the dial timeout bounds. Raises
        RegistryUnreachableError when another request's connecting, waited for, failed.
        """
        before = self._failures.get(origin)
        async with contextlib.AsyncExitStack() as turn:
            if not self._proven(origin):
                await turn.enter_async_context(self._dials.hold(str(origin)))
                failure = self._failures.get(origin)
                if failure is not None and failure is not before:
                    raise RegistryUnreachableError(failure.text, url=str(origin))

            async def connected() -> None:
                self.connected(origin)
                await turn.aclose()

            yield connected

    def _proven(self, origin: Origin) -> bool:
        at = self._connected.get(origin)
        return at is not None and self._clock.monotonic() - at < MEMORY_S
