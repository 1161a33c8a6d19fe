# SPDX-License-Identifier: Apache-2.0
"""Turns of the event loop."""

from __future__ import annotations

import asyncio


async def passes() -> None:
    """Let every task that is ready run a while."""
    for _ in range(10):
        await asyncio.sleep(0)
