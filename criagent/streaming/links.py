"""SPDY streams as coroutines use them, over TCP or within a WebSocket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from criagent.streaming.spdy import Data, Opened, Reset, SpdyConnection, Window
from criagent.streaming.spdy_frames import SpdyError

_BUFFERED = 256 << 10  # bytes of one stream that nobody has read yet

Send = Callable[[bytes], Awaitable[None]]


class StreamClosed(Exception):  # noqa: N818 - an outcome, not a fault
    """The peer has given the stream up, or the connection is gone."""


class Stream:
    """One stream of a SPDY connection."""

    def __init__(self, link: SpdyLink, number: int, headers: dict[str, str]) -> None:
        self.number = number
        self.headers = headers
        self._link = link
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._reset = False
        self.buffered = 0

    async def read(self) -> bytes:
        """The next bytes; b"" at the end, also when the stream was reset."""
        while not self._chunks:
            if self._ended or self._reset:
                return b""
            self._changed.clear()
            await self._changed.wait()
        data = self._chunks.popleft()
        self.buffered -= len(data)
        await self._link.taken(self.number, len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Send `data`. Raises StreamClosed."""
        if self._reset:
            raise StreamClosed
        await self._link.send(self.number, data, fin=False)
        while self._link.held_back(self.number) > _BUFFERED:
            if self._reset:
                raise StreamClosed
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Say that nothing more comes from us."""
        if not self._reset:
            await self._link.send(self.number, b"", fin=True)

    async def reset(self) -> None:
        """Give the stream up in both directions."""
        if not self._reset:
            self._reset = True
            await self._link.reset(self.number)

    def feed(self, data: bytes, *, fin: bool) -> None:
        """Bytes from the peer."""
        if data:
            self._chunks.append(data)
            self.buffered += len(data)
        self._ended = self._ended or fin
        self._changed.set()

    def lost(self) -> None:
        """The peer reset the stream, or the connection ended."""
        self._reset = True
        self._changed.set()

    def wake(self) -> None:
        """There may be room to send."""
        self._changed.set()


class SpdyLink:
    """A SPDY connection with its streams; `run` must be kept going by somebody."""

    def __init__(self, send: Send) -> None:
        self._connection = SpdyConnection()
        self._send = send
        self._streams: dict[int, Stream] = {}
        self._opened: asyncio.Queue[Stream | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._writing = asyncio.Lock()
        self.closed = asyncio.Event()

    async def accept(self) -> Stream | None:
        """The next stream that the peer opens; None when the connection has ended."""
        stream = await self._opened.get()
        if stream is not None:
            self._connection.reply(stream.number)
            await self._flush()
        return stream

    async def run(self, chunks: AsyncIterator[bytes]) -> None:
        """Take bytes until they end; streams are lost then. Raises nothing of the peer's making."""
        try:
            async for chunk in chunks:
                for event in self._connection.receive_data(chunk):
                    self._dispatch(event)
                await self._flush()
                await self._wait_for_room()
        except (SpdyError, OSError, EOFError):
            pass  # the peer broke the connection or the protocol; its streams end below
        finally:
            self.closed.set()
            for stream in self._streams.values():
                stream.lost()
            self._opened.put_nowait(None)

    async def send(self, stream: int, data: bytes, *, fin: bool) -> None:
        """Bytes of a stream. Raises StreamClosed when the connection is gone."""
        if self.closed.is_set():
            raise StreamClosed
        self._connection.send_data(stream, data, fin=fin)
        await self._flush()

    async def reset(self, stream: int) -> None:
        """See `Stream.reset`."""
        self._streams.pop(stream, None)
        self._connection.reset(stream)
        await self._flush()

    def held_back(self, stream: int) -> int:
        """Bytes that the stream's window holds back."""
        return 0 if self.closed.is_set() else self._connection.unsent(stream)

    async def taken(self, stream: int, count: int) -> None:
        """The reader of a stream took `count` bytes."""
        self._room.set()
        self._connection.acknowledge(stream, count)
        await self._flush()

    def forget(self, stream: Stream) -> None:
        """Nobody reads this stream any more; what still comes for it is dropped."""
        self._streams.pop(stream.number, None)
        self._room.set()

    def _dispatch(self, event: Opened | Data | Reset | Window) -> None:
        if isinstance(event, Opened):
            stream = Stream(self, event.stream, event.headers)
            self._streams[event.stream] = stream
            if event.fin:
                stream.feed(b"", fin=True)
            self._opened.put_nowait(stream)
            return
        known = self._streams.get(event.stream)
        if known is None:
            return
        if isinstance(event, Data):
            known.feed(event.data, fin=event.fin)
        elif isinstance(event, Reset):
            known.lost()
        else:
            known.wake()

    async def _wait_for_room(self) -> None:
        while any(stream.buffered > _BUFFERED for stream in self._streams.values()):
            self._room.clear()
            await self._room.wait()

    async def _flush(self) -> None:
        async with self._writing:
            data = self._connection.data_to_send()
            if data:
                try:
                    await self._send(data)
                except OSError:
                    self.closed.set()
