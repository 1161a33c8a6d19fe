"""The garbage collector's schedule, so that its pauses stay out of calls.

A full collection looks at every object of every row: about 60 µs a container, in which nobody is
answered. Nearly all of ours are freed by reference counts. So full collections run now and then
instead of whenever rows have grown, and what lives after one is left out of the next small ones.
"""

from __future__ import annotations

import asyncio
import gc

_FULL_EVERY_S = 900.0
_YOUNG = 10_000  # allocations between small collections, each under a millisecond


async def collect_now_and_then() -> None:
    """Take over the schedule; runs until it is cancelled."""
    gc.set_threshold(_YOUNG, 20, 1_000_000)
    while True:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        await asyncio.sleep(_FULL_EVERY_S)
