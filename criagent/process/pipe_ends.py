# SPDX-License-Identifier: Apache-2.0
"""Our ends of a child's pipes: a reader with a bound, and a writer of little."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import functools
import os
import sys
import termios
from collections.abc import Callable

_CHUNK = 64 << 10  # what a pipe holds (man 7 pipe)


def up_to(limit: int) -> Callable[[int], PipeReader]:
    """Makes a PipeReader that keeps `limit` bytes: an end for `Pipes`."""
    return functools.partial(PipeReader, limit=limit)


class PipeWriter:
    """The end of a pipe into which little is written, without waiting."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def enlarge(self, size: int) -> None:
        """Let the pipe hold `size` bytes (man 2 F_SETPIPE_SZ). Raises OSError."""
        fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, size)

    def write(self, data: bytes) -> None:
        """Write what must fit. Raises BlockingIOError when it does not, BrokenPipeError."""
        if os.write(self._fd, data) < len(data):
            raise BlockingIOError(errno.EAGAIN, "a pipe is full")

    def close(self) -> None:
        """Close the descriptor; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class PipeReader:
    """Bytes of a pipe as they come, on the event loop; at most `limit` of them are kept."""

    def __init__(self, fd: int, *, limit: int) -> None:
        os.set_blocking(fd, False)
        self.data = bytearray()
        self.dropped = 0
        self._fd = fd
        self._limit = limit
        self._ended = asyncio.Event()
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        self._read(_CHUNK)

    def _read(self, most: int) -> int:
        """Read once, at most that many bytes; how many came."""
        try:
            chunk = os.read(self._fd, most)
        except BlockingIOError:
            return 0
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return 0
        kept = self._admitted(len(chunk))
        self.data += chunk[:kept]
        self.dropped += len(chunk) - kept
        self._more.set()
        return len(chunk)

    def _admitted(self, count: int) -> int:
        """How many of the next `count` bytes are kept; none after one was dropped."""
        return 0 if self.dropped else max(min(count, self._limit - len(self.data)), 0)

    def drain(self) -> None:
        """Read what is there now, without waiting for the loop to say so.

        What is written meanwhile is left: a process may write without end.
        """
        there = self._waiting()
        while there > 0 and (count := self._read(min(there, _CHUNK))):
            there -= count

    def taken(self) -> bytes:
        """What has come and what is there now; nothing more is read."""
        self.drain()
        self.close()
        return bytes(self.data)

    def _waiting(self) -> int:
        """How many bytes the pipe holds (man 2 ioctl_pipe, FIONREAD)."""
        if self._fd < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)

    async def line(self) -> bytes | None:
        """The first line without its newline, taken out of `data`; None when the pipe ends."""
        while b"\n" not in self.data:
            if self._ended.is_set():
                return None
            self._more.clear()
            await self._more.wait()
        line, _, rest = bytes(self.data).partition(b"\n")
        self.data[:] = rest
        return line

    async def ended(self) -> None:
        """Return at the end of the pipe."""
        await self._ended.wait()

    def close(self) -> None:
        """Stop reading and close the descriptor; idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()
            self._more.set()
