# SPDX-License-Identifier: Apache-2.0
"""Where statistics are read and converted: one file thread at most is busy with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from criagent.base.aio import run_in

T = TypeVar("T")


class StatsThread:
    """One call after the other in the fs executor."""

    def __init__(self, fs: Executor) -> None:
        self._fs = fs
        self._reading = asyncio.Lock()

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """The result of `call`, made off the loop."""
        async with self._reading:
            return await run_in(self._fs, call, *args)
