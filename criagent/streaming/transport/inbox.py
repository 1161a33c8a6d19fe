# SPDX-License-Identifier: Apache-2.0
"""A bounded buffer of bytes from a client to one reader."""

from __future__ import annotations

import asyncio

_ROOM = 256 << 10


class Inbox:
    """One writer, one reader; ended once."""

    def __init__(self) -> None:
        self.lost = False
        self._unread = bytearray()
        self._changed = asyncio.Event()
        self._ended = False

    @property
    def full(self) -> bool:
        """Whether its writer has to wait."""
        return len(self._unread) > _ROOM

    async def put(self, data: bytes) -> None:
        """Add bytes and wait until there is room for more. After the end they are dropped.

        Raises EOFError once the inbox was abandoned.
        """
        if not self._ended:
            self._unread += data
            self._changed.set()
        while self.full and not self.lost:
            self._changed.clear()
            await self._changed.wait()
        if self.lost:
            raise EOFError

    async def get(self) -> bytes:
        """The next bytes, b"" at the end."""
        while not self._unread:
            if self._ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._unread)
        self._unread.clear()
        self._changed.set()
        return data

    def end(self) -> None:
        """No more bytes will come."""
        self._ended = True
        self._changed.set()

    def discard(self) -> None:
        """The reader has stopped; drop everything that still arrives."""
        self._unread.clear()
        self.end()

    def abandon(self) -> None:
        """The client has left: drop the bytes that were not read."""
        self.lost = True
        self.discard()
