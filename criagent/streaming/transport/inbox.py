"""Bytes on their way from a client to one reader, bounded."""

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
        """Add bytes and wait until there is room for more. Nothing is taken after the end.

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
        """Nothing more comes."""
        self._ended = True
        self._changed.set()

    def discard(self) -> None:
        """There is no reader any more; what comes is dropped."""
        self._unread.clear()
        self.end()

    def abandon(self) -> None:
        """The client has left: what nobody has read is of no use any more."""
        self.lost = True
        self.discard()
