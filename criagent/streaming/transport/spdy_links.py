# SPDX-License-Identifier: Apache-2.0
"""SPDY streams as coroutines use them, over TCP or within a WebSocket.

A peer without flow control can send more on one stream than its reader takes. The connection is
then not read any further, so that memory stays bounded; with `stall_s`, a stream whose reader took
no byte for that time is reset instead, so that it delays the other streams no longer than that.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from criagent.streaming.transport.pace import Turn, pieces
from criagent.streaming.transport.spdy import (
    INITIAL_WINDOW,
    Broken,
    Data,
    Event,
    Opened,
    Reset,
    SpdyConnection,
)
from criagent.streaming.transport.spdy_frames import RST_REFUSED_STREAM
from criagent.streaming.transport.wire import HEARTBEAT_S

_BUFFERED = 256 << 10  # unread bytes of one stream
_HELD = 8 << 20  # and of all streams of a connection

Send = Callable[[bytes], Awaitable[None]]


class StreamClosed(Exception):  # noqa: N818 - an outcome, not a fault
    """The peer has reset the stream, or the connection has ended."""


class Stream:
    """One stream of a SPDY connection."""

    def __init__(self, link: SpdyLink, number: int, headers: dict[str, str]) -> None:
        self.number = number
        self.headers = headers
        self.buffered = 0
        self.untaken = 0  # bytes read since the last WINDOW_UPDATE
        self.taken_at = asyncio.get_running_loop().time()
        self._link = link
        self._unread = bytearray()
        self._changed = asyncio.Event()
        self._ended = False
        self._lost = False

    @property
    def lost(self) -> bool:
        """Whether either side has reset the stream, or its connection has ended."""
        return self._lost

    async def read(self) -> bytes:
        """The next bytes; b"" at the end, also when the stream is lost."""
        while not self._unread:
            if self._ended or self._lost:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._unread)
        self._unread.clear()
        await self._link.taken(self, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send `data` once the peer's window admits it. Raises StreamClosed."""
        if self._lost:
            raise StreamClosed
        await self._link.send(self.number, data, fin=False)
        while self._link.held_back(self.number):
            if self._lost:
                raise StreamClosed
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """End our half of the stream. Raises StreamClosed."""
        if not self._lost:
            await self._link.send(self.number, b"", fin=True)

    async def reset(self) -> None:
        """Reset the stream in both directions; idempotent."""
        if not self._lost:
            self.lose()
            await self._link.reset(self.number)

    def feed(self, data: bytes, *, fin: bool) -> None:
        """Bytes from the peer."""
        self._unread += data
        self._ended = self._ended or fin
        self._changed.set()

    def lose(self) -> None:
        """Mark the stream as lost and drop its unread bytes."""
        self._lost = True
        self._unread.clear()
        self._link.drop(self)
        self._changed.set()

    def wake(self) -> None:
        """Wake writers: there may be room to send."""
        self._changed.set()


class SpdyLink:
    """A SPDY connection with its streams; its owner must run `run`."""

    def __init__(
        self, send: Send, gone: asyncio.Event, turn: Turn, *, stall_s: float | None = None
    ) -> None:
        self.closed = asyncio.Event()
        self._turn = turn
        self._connection = SpdyConnection()
        self._send = send
        self._gone = gone
        self._stall_s = stall_s
        self._streams: dict[int, Stream] = {}
        self._unaccepted: dict[int, Stream] = {}  # in the order of their opening
        self._opened = asyncio.Event()
        self._refusing = False
        self._full: set[Stream] = set()
        self._held = 0
        self._room = asyncio.Event()
        self._writing = asyncio.Lock()

    async def accept(self) -> Stream | None:
        """The next stream that the peer opens; None when the connection has ended."""
        while not self._unaccepted:
            if self.closed.is_set():
                return None
            self._opened.clear()
            await self._opened.wait()
        stream = self._unaccepted.pop(next(iter(self._unaccepted)))
        self._connection.reply(stream.number)
        await self._flush()
        return stream

    async def accept_no_more(self) -> None:
        """Refuse every stream that was not accepted so far."""
        self._refusing = True
        for stream in list(self._unaccepted.values()):
            await stream.reset()

    async def run(self, chunks: AsyncIterator[bytes]) -> None:
        """Process bytes until they end, then mark all streams as lost. Does not raise for errors of
        the peer.
        """
        leaving = asyncio.create_task(self._leave())
        try:
            async for chunk in chunks:
                for piece in pieces(chunk):
                    if not self._take(piece):
                        return
                    await self._flush()
                    await self._wait_for_room()
                    await self._turn.over()
        except (OSError, EOFError):
            pass  # the peer has left; its streams end below
        finally:
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flush()
            self._lose_all()

    async def send(self, stream: int, data: bytes, *, fin: bool) -> None:
        """Bytes of a stream. Raises StreamClosed when the connection is gone."""
        if self.closed.is_set():
            raise StreamClosed
        self._connection.send_data(stream, data, fin=fin)
        await self._flush()

    async def reset(self, stream: int) -> None:
        """See `Stream.reset`."""
        self._connection.reset(stream)
        await self._flush()

    def held_back(self, stream: int) -> int:
        """The number of bytes that the stream's window holds back."""
        return 0 if self.closed.is_set() else self._connection.unsent(stream)

    async def taken(self, stream: Stream, count: int) -> None:
        """The reader of a stream consumed `count` bytes."""
        stream.taken_at = asyncio.get_running_loop().time()
        stream.buffered -= count
        stream.untaken += count
        self._held -= count
        if stream.buffered <= _BUFFERED:
            self._full.discard(stream)
            self._room.set()
        if stream.untaken >= INITIAL_WINDOW // 2:
            self._connection.acknowledge(stream.number, stream.untaken)
            stream.untaken = 0
            await self._flush()

    def drop(self, stream: Stream) -> None:
        """Drop what still arrives for this stream, which has no reader any more."""
        self._streams.pop(stream.number, None)
        self._unaccepted.pop(stream.number, None)
        self._held -= stream.buffered
        stream.buffered = 0
        self._full.discard(stream)
        self._room.set()

    def _take(self, piece: bytes) -> bool:
        """False when the peer broke the protocol."""
        with self._turn:
            for event in self._connection.receive_data(piece):
                if isinstance(event, Broken):
                    return False
                self._dispatch(event)
        return True

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Opened):
            if self._refusing:
                self._connection.reset(event.stream, RST_REFUSED_STREAM)
                return
            stream = Stream(self, event.stream, event.headers)
            self._streams[event.stream] = self._unaccepted[event.stream] = stream
            if event.fin:
                stream.feed(b"", fin=True)
            self._opened.set()
            return
        known = None if isinstance(event, Broken) else self._streams.get(event.stream)
        if known is None:
            return
        if isinstance(event, Data):
            known.buffered += len(event.data)
            self._held += len(event.data)
            if known.buffered > _BUFFERED:
                self._full.add(known)
            known.feed(event.data, fin=event.fin)
        elif isinstance(event, Reset):
            known.lose()
        else:
            known.wake()

    async def _wait_for_room(self) -> None:
        while self._full or self._held > _HELD:
            if self._gone.is_set():
                raise EOFError
            self._room.clear()
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._room.wait()
            except TimeoutError:
                if self._stall_s is not None:
                    await self._reset_stalled(self._stall_s)
                if not self._writing.locked():  # otherwise something is being sent anyway
                    self._connection.heartbeat()
                    await self._flush()

    async def _reset_stalled(self, stall_s: float) -> None:
        before = asyncio.get_running_loop().time() - stall_s
        holders = self._full or {one for one in self._streams.values() if one.buffered}
        stalled = [one for one in holders if one.taken_at <= before]
        if len(self._streams) > 2 * len(stalled):  # a single pair delays no other
            for stream in stalled:
                await stream.reset()

    async def _leave(self) -> None:
        await self._gone.wait()
        self._room.set()

    def _lose_all(self) -> None:
        self.closed.set()
        for stream in list(self._streams.values()):
            stream.lose()
        self._opened.set()

    async def _flush(self) -> None:
        async with self._writing:
            data = self._connection.data_to_send()
            if not data or self.closed.is_set():
                return
            try:
                await self._send(data)
            except OSError:
                self._lose_all()
