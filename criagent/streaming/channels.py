# SPDX-License-Identifier: Apache-2.0
"""The remote-command protocols (exec and attach), v1 to v5, over SPDY streams and WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from criagent.runtime.exec.plan import Size
from criagent.streaming.outcome import Outcome, SizeParser, parse_size
from criagent.streaming.transport.channel_codec import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    ChannelCodec,
    ChannelError,
)
from criagent.streaming.transport.inbox import Inbox
from criagent.streaming.transport.spdy_links import SpdyLink, Stream, StreamClosed

if TYPE_CHECKING:
    from criagent.streaming.transport.websocket import WebSocket

SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
WEBSOCKET_PROTOCOLS = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
)


class ClientGone(Exception):  # noqa: N818 - an outcome, not a fault
    """The client has left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The streams that the session has."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Channels(Protocol):
    """One client of an exec or attach."""

    gone: asyncio.Event

    def stdin(self) -> AsyncIterator[bytes]: ...
    def sizes(self) -> AsyncIterator[Size]: ...
    async def write(self, data: bytes, *, stderr: bool) -> None: ...
    async def finish(self, outcome: Outcome) -> None: ...


class SpdyChannels:
    """Streams, distinguished by their `streamtype` header."""

    def __init__(self, link: SpdyLink, protocol: str) -> None:
        self.gone = link.closed
        self._link = link
        self._version = int(protocol[1]) if protocol.startswith("v") else 1
        self._streams: dict[str, Stream] = {}

    async def open(self, wanted: Wanted, limit_s: float) -> None:
        """Wait for the streams that the client has to open. Raises ClientGone, TimeoutError."""
        missing = {"error"}
        missing |= {kind for kind in ("stdin", "stdout", "stderr") if getattr(wanted, kind)}
        if wanted.tty and self._version >= 3:
            missing.add("resize")
        async with asyncio.timeout(limit_s):
            while missing:
                stream = await self._link.accept()
                if stream is None:
                    raise ClientGone
                kind = stream.headers.get("streamtype", "")
                if kind not in missing:
                    await stream.reset()
                    continue
                missing.discard(kind)
                self._streams[kind] = stream
        await self._link.accept_no_more()

    async def stdin(self) -> AsyncIterator[bytes]:
        """Bytes until the client ends its half."""
        if (stream := self._streams.get("stdin")) is not None:
            while data := await stream.read():
                yield data

    async def sizes(self) -> AsyncIterator[Size]:
        """Sizes of the client's terminal; a size that is followed at once by another may be left
        out.
        """
        stream = self._streams.get("resize")
        parser = SizeParser()
        while stream is not None and (data := await stream.read()):
            if (size := parser.feed(data)) is not None:
                yield size

    async def write(self, data: bytes, *, stderr: bool) -> None:
        """Send to the client; data of streams that it did not request is dropped. Raises
        ClientGone.
        """
        stream = self._streams.get("stderr" if stderr else "stdout")
        if stream is not None:
            try:
                await stream.write(data)
            except StreamClosed:
                raise ClientGone from None

    async def finish(self, outcome: Outcome) -> None:
        """Send the outcome and end every stream."""
        text = outcome.status() if self._version >= 4 else outcome.text().encode()
        try:
            if text:
                await self._streams["error"].write(text)
            for stream in self._streams.values():
                await stream.close()
                self._link.drop(stream)
        except StreamClosed:
            pass  # the client has already left


class WebSocketChannels:
    """Messages whose first byte is the channel; a digit and base64 in the old text protocols."""

    def __init__(self, socket: WebSocket, wanted: Wanted) -> None:
        self.gone = socket.closed
        self._socket = socket
        self._wanted = wanted
        self._codec = ChannelCodec(socket.subprotocol)
        self._stdin = Inbox()
        self._size: Size | None = None
        self._resized = asyncio.Event()

    async def open(self) -> None:
        """The first, empty message says that the server is ready."""
        first = STDERR if self._wanted.stderr else ERROR
        await self._send(STDOUT if self._wanted.stdout else first, b"")

    async def run(self) -> None:
        """Distribute incoming messages to their channels until the client leaves."""
        leaving = asyncio.create_task(self._leave())
        beating = asyncio.create_task(self._socket.heartbeats(lambda: self._stdin.full))
        try:
            async for message in self._socket.messages():
                await self._take(message)
        except ChannelError as exc:
            await self._socket.fail(str(exc))
        except EOFError:
            pass  # the client left while its stdin had no room
        finally:
            leaving.cancel()
            beating.cancel()
            self._socket.closed.set()
            self._stdin.end()

    async def stdin(self) -> AsyncIterator[bytes]:
        """Bytes until the client ends its half."""
        while data := await self._stdin.get():
            yield data

    async def sizes(self) -> AsyncIterator[Size]:
        """Sizes of the client's terminal; a size that is followed at once by another may be left
        out.
        """
        while True:
            await self._resized.wait()
            self._resized.clear()
            if self._size is not None:
                yield self._size

    async def write(self, data: bytes, *, stderr: bool) -> None:
        """Send to the client; data of channels that it did not request is dropped. Raises
        ClientGone.
        """
        if self._wanted.stderr if stderr else self._wanted.stdout:
            await self._send(STDERR if stderr else STDOUT, data)

    async def finish(self, outcome: Outcome) -> None:
        """Send the outcome; the server closes the socket afterwards."""
        self._stdin.discard()
        text = outcome.status() if self._codec.version >= 4 else outcome.text().encode()
        if text:
            with contextlib.suppress(ClientGone):
                await self._send(ERROR, text)

    async def _take(self, message: bytes) -> None:
        found = self._codec.decode(message)
        if found is None:
            return
        if found.channel == STDIN and found.data and self._wanted.stdin:
            await self._stdin.put(found.data)
        elif found.channel == RESIZE and (size := parse_size(found.data)) is not None:
            self._size = size
            self._resized.set()
        elif self._codec.closed(found) == STDIN:
            self._stdin.end()

    async def _leave(self) -> None:
        """Detects, as the only place, a client that leaves while its stdin is full."""
        await self._socket.gone.wait()
        self._stdin.abandon()

    async def _send(self, channel: int, data: bytes) -> None:
        try:
            await self._socket.send(self._codec.encode(channel, data), text=self._codec.text)
        except OSError:
            raise ClientGone from None
