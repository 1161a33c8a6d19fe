# SPDX-License-Identifier: Apache-2.0
"""A client's connection as bytes: when they last moved, and whether the client has left.

A session that waits for its pod does not read from its client, and would learn late or never that
the client has left. So hang-ups are detected apart from reading, by a separate epoll (EPOLLRDHUP of
man 2 epoll_ctl): neither SPDY nor WebSocket continues over half a TCP connection. A client that
left with bytes unsent, because we did not read, cannot even tell: its FIN waits behind them. So
connections that are not read for HEARTBEAT_S get a frame without effect, for which the kernel of a
client that has left resets the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import select
import socket
from collections.abc import Callable

import structlog

from criagent.streaming.transport.pace import Turn

HEARTBEAT_S = 3.0
_CHUNK = 128 << 10
_LAST_BYTES_S = 5.0
_LINGER_S = 10.0  # for the client to take the last bytes

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Hangups:
    """Calls back once when the peer of a watched socket has closed its end."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call `call` when the peer of `fd` has left; `forget` before closing it."""
        self._calls[fd] = call
        self._epoll.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)

    def forget(self, fd: int) -> None:
        """Stop watching it; idempotent."""
        self._calls.pop(fd, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching everything."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0):
            if (call := self._calls.pop(fd, None)) is not None:
                call()


async def closed(writer: asyncio.StreamWriter) -> None:
    """Close a connection once the written bytes are sent, or after ten seconds."""
    writer.close()
    try:
        with contextlib.suppress(OSError):  # TimeoutError is one of them
            async with asyncio.timeout(_LINGER_S):
                await writer.wait_closed()
    finally:
        writer.transport.abort()


class Wire:
    """One connection. `gone` is set when the client has left, or was idle for `idle_s` seconds.

    `turn` is its share of the event loop: work on its bytes is counted there.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hangups: Hangups,
        idle_s: float,
        turn: Turn,
    ) -> None:
        self.gone = asyncio.Event()
        self.turn = turn
        self._reader = reader
        self._writer = writer
        self._hangups = hangups
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._read_until = math.inf
        self._last = self._loop.time()
        self._timer = self._loop.call_at(self._last + idle_s, self._look)
        peer: socket.socket = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._fd = peer.fileno()
        hangups.watch(self._fd, self._left)

    async def read(self) -> bytes:
        """The next bytes, b"" at the end. Raises OSError.

        Bytes that a client sent before it left are read for five seconds.
        """
        if self._loop.time() > self._read_until:
            return b""
        data = await self._reader.read(_CHUNK)
        self._last = self._loop.time()
        return data

    async def write(self, data: bytes) -> None:
        """Send `data` at the client's pace. Raises OSError when it has left."""
        self._writer.write(data)
        await self._writer.drain()
        self._last = self._loop.time()

    async def close(self) -> None:
        """Close, but give the client time to take the sent bytes; idempotent."""
        self._timer.cancel()
        self._hangups.forget(self._fd)
        await closed(self._writer)

    def abort(self) -> None:
        """Abort the connection; unsent bytes are lost."""
        self.gone.set()
        self._writer.transport.abort()

    def _left(self) -> None:
        self._read_until = self._loop.time() + _LAST_BYTES_S
        self.gone.set()

    def _look(self) -> None:
        until = self._last + self._idle_s
        if until <= self._loop.time():
            log.info("stream_idle", seconds=self._idle_s)
            self.abort()
        else:
            self._timer = self._loop.call_at(until, self._look)
