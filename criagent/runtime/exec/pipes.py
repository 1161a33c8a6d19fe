# SPDX-License-Identifier: Apache-2.0
"""Descriptors as coroutines use them: pipes and terminals. Nothing is buffered here."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import termios

_CHUNK = 64 << 10  # the capacity of a pipe
_READS_AT_ONCE = 8


class Pipe:
    """One end of a pipe, or a terminal's master; closed once."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._patience_s: float | None = None
        self._reads = 0
        self._reading: asyncio.Future[bool] | None = None

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. A terminal ends with EIO (man 4 pty)."""
        self._reads += 1
        if not self._reads % _READS_AT_ONCE:
            await asyncio.sleep(0)  # an endless writer must not block the loop
        while self._fd >= 0:
            try:
                return os.read(self._fd, _CHUNK)
            except BlockingIOError:
                if not await self._ready(write=False):
                    return b""
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                return b""
        return b""

    def drain(self, patience_s: float) -> None:
        """From now on, a read that finds nothing for `patience_s` seconds is the end."""
        self._patience_s = patience_s
        if self._reading is not None:
            self._give_up_later(self._reading)

    async def write(self, data: bytes) -> None:
        """Write everything. Raises BrokenPipeError when there is no reader any more."""
        view = memoryview(data)
        while view:
            if self._fd < 0:
                raise BrokenPipeError
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._ready(write=True)

    def resize(self, width: int, height: int) -> None:
        """Set a terminal's size (man 4 tty_ioctl)."""
        if self._fd >= 0:
            size = struct.pack("HHHH", height, width, 0, 0)
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, size)

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def _ready(self, *, write: bool) -> bool:
        """Wait until it can be read or written; False when patience ended before."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bool] = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(True)

        fd = self._fd
        (loop.add_writer if write else loop.add_reader)(fd, wake)
        if not write:
            self._reading = ready
            if self._patience_s is not None:
                self._give_up_later(ready)
        try:
            return await ready
        finally:
            if not write:
                self._reading = None
            if self._fd == fd:
                (loop.remove_writer if write else loop.remove_reader)(fd)

    def _give_up_later(self, ready: asyncio.Future[bool]) -> None:
        def give_up() -> None:
            if not ready.done():
                ready.set_result(False)

        timer = asyncio.get_running_loop().call_later(self._patience_s or 0.0, give_up)
        ready.add_done_callback(lambda _: timer.cancel())
