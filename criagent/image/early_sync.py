# SPDX-License-Identifier: Apache-2.0
"""Layers go to disk while they are written, so that the sync at the end has little left to do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from criagent.image.snapshots.snapshots import Snapshots
from criagent.kernel.write_back import WriteBack

_PIECE: Final = 32 << 20  # bytes of blobs; a smaller image is synced once, at its end


class EarlySync:
    """Syncs `written` whenever another piece of the blobs has been unpacked."""

    def __init__(
        self, snapshots: Snapshots, written: WriteBack, received: Callable[[int], None]
    ) -> None:
        """`received` gets each size as well."""
        self._snapshots = snapshots
        self._written = written
        self._received = received
        self._bytes = 0
        self._due = asyncio.Event()

    def received(self, size: int) -> None:
        """Note that so many more bytes of blobs have been read."""
        self._received(size)
        self._bytes += size
        if self._bytes >= _PIECE:
            self._bytes = 0
            self._due.set()

    async def until_failure(self) -> None:
        """Return when a sync has failed, as every later one of `written` does; cancel it before."""
        while not self._written.failed:
            await self._due.wait()
            self._due.clear()
            with contextlib.suppress(OSError):
                await self._snapshots.sync(self._written)
