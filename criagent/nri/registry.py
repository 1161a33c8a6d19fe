# SPDX-License-Identifier: Apache-2.0
"""The registered plugins in their order, and the calls of them that are in progress.

A plugin that registers is told what there is. What is being told to others at that moment must not
be lost: calls that began before it registered end first, then it is told, and calls that began
after it registered reach it when it has been told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from criagent.nri.plugin import Plugin


class Registry:
    """Plugins by index; those of equal index by their registration."""

    def __init__(self) -> None:
        self._plugins: list[Plugin] = []
        self._calls: set[asyncio.Future[None]] = set()

    @property
    def all(self) -> list[Plugin]:
        """Every plugin, also one that is being told what there is."""
        return list(self._plugins)

    @property
    def some(self) -> bool:
        """Whether there is any."""
        return bool(self._plugins)

    @contextlib.contextmanager
    def call(self) -> Iterator[list[Plugin]]:
        """The plugins to tell something, which is told when the block ends."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls.add(ended)
        try:
            yield [plugin for plugin in self._plugins if plugin.alive]
        finally:
            self._calls.discard(ended)
            ended.set_result(None)

    async def add(self, plugin: Plugin) -> None:
        """Add it for calls that begin from now on; returns when those before have ended."""
        self._plugins.append(plugin)
        self._plugins.sort(key=lambda one: one.identity.index)
        if earlier := set(self._calls):
            await asyncio.wait(earlier)

    def remove(self, plugin: Plugin) -> None:
        """It is gone."""
        with contextlib.suppress(ValueError):
            self._plugins.remove(plugin)
        if not plugin.synchronized.done():
            plugin.synchronized.set_result(False)
