# SPDX-License-Identifier: Apache-2.0
"""Claims: what pulls and imports in progress rely on, so that it is not collected meanwhile.

A claim is a counter, not a lock: any number of pulls may hold it for as long as a registry takes,
and it delays no one. A removal is short, and a claim waits for its end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager


class Claims:
    """Claims on objects of one kind, by digest or chain ID."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._removals: dict[str, asyncio.Event] = {}
        self._all = 0

    def claimed(self, key: str) -> bool:
        """Whether a pull or an import relies on the object."""
        return bool(self._all or self._counts[key])

    @asynccontextmanager
    async def hold(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Claim these objects for the block: those that exist when it begins stay.

        Waits only for removals of them that are in progress.
        """
        claimed = list(dict.fromkeys(keys))
        self._counts.update(claimed)
        try:
            for key in claimed:
                await self._removed(key)
            yield
        finally:
            self._counts.subtract(claimed)
            for key in claimed:
                if not self._counts[key]:
                    del self._counts[key]

    @asynccontextmanager
    async def growing(self) -> AsyncIterator[GrowingClaim]:
        """A claim on whatever is added within the block, until its end."""
        async with AsyncExitStack() as stack:
            yield GrowingClaim(self, stack)

    @asynccontextmanager
    async def hold_all(self) -> AsyncIterator[None]:
        """Claim every object for the block, which must not wait for a registry."""
        self._all += 1
        try:
            while self._removals:
                await next(iter(self._removals.values())).wait()
            yield
        finally:
            self._all -= 1

    @asynccontextmanager
    async def removing(self, key: str) -> AsyncIterator[bool]:
        """Whether the object may be removed in the block, which must not wait for a registry."""
        await self._removed(key)
        if self.claimed(key):
            yield False
            return
        done = self._removals[key] = asyncio.Event()
        try:
            yield True
        finally:
            del self._removals[key]
            done.set()

    async def _removed(self, key: str) -> None:
        while (removal := self._removals.get(key)) is not None:
            await removal.wait()


class GrowingClaim:
    """The claim of one pull, which grows as the pull proceeds."""

    def __init__(self, claims: Claims, stack: AsyncExitStack) -> None:
        self._claims = claims
        self._stack = stack

    async def add(self, *keys: str) -> None:
        """Claim these objects too. To be called before checking whether they exist."""
        await self._stack.enter_async_context(self._claims.hold(keys))
