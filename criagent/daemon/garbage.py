# SPDX-License-Identifier: Apache-2.0
"""The garbage collector's schedule, so that its pauses stay out of calls.

A full collection visits every object of every row: about 60 µs a container, in which no call is
answered. Nearly all objects are freed by reference counts. So full collections run at intervals
instead of whenever rows have grown, and what lives after one is left out of the next ones.

The heap keeps what a burst of calls or streams took, tens of MB with bytes between holes: after a
burst the holes go back to the kernel.
"""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Executor

from criagent.base.aio import run_in
from criagent.process.heap import give_back

_LOOK_S = 10.0
_FULL_EVERY = 90  # looks
_YOUNG = 10_000  # allocations between small collections, each under a millisecond


def collect_less() -> None:
    """No full collections from now on, until `collect_now_and_then` makes them."""
    gc.set_threshold(_YOUNG, 20, 1_000_000)


async def collect_now_and_then(executor: Executor) -> None:
    """Collect on schedule; runs until it is cancelled. An idle daemon does nothing in it."""
    looks, seen = 0, -1
    while True:
        if looks % _FULL_EVERY == 0:
            gc.unfreeze()
        collections = gc.get_stats()[0]["collections"]
        if collections != seen or looks % _FULL_EVERY == 0:
            seen = collections
            gc.collect()
            gc.freeze()
            await run_in(executor, give_back)
        looks += 1
        await asyncio.sleep(_LOOK_S)
