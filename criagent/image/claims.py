"""What pulls and imports under way count on, so that nothing of it is collected meanwhile.

A claim is a number, not a lock: it may be held for as long as a registry likes, by any number of
pulls, and delays nobody. A removal is short, and a claim waits for its end.
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
        """Whether a pull or an import counts on the object."""
        return bool(self._all or self._counts[key])

    @asynccontextmanager
    async def hold(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Count on these objects for the block: what is there when it begins stays there.

        Waits for removals of them that are under way, for nothing else.
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
        """A claim of what is named within the block, until its end."""
        async with AsyncExitStack() as stack:
            yield GrowingClaim(self, stack)

    @asynccontextmanager
    async def hold_all(self) -> AsyncIterator[None]:
        """Count on every object for the block, which must not wait for a registry."""
        self._all += 1
        try:
            while self._removals:
                await next(iter(self._removals.values())).wait()
            yield
        finally:
            self._all -= 1

    @asynccontextmanager
    async def removing(self, key: str) -> AsyncIterator[bool]:
        """Whether the object may be removed within the block, which no registry may delay."""
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
    """The claim of one pull, which learns bit by bit what it counts on."""

    def __init__(self, claims: Claims, stack: AsyncExitStack) -> None:
        self._claims = claims
        self._stack = stack

    async def add(self, *keys: str) -> None:
        """Count on these objects too. To be called before it is looked whether they are there."""
        await self._stack.enter_async_context(self._claims.hold(keys))
