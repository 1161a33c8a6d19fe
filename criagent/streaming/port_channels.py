# SPDX-License-Identifier: Apache-2.0
"""Port-forward over the channels of a WebSocket: 2n is the data of the nth port, 2n + 1 its errors.

Each channel begins with its port as a little-endian uint16. There is no half-close: a channel ends
with its socket, which ends when the connections of all ports have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from criagent.streaming.port_forward import Target, connect
from criagent.streaming.transport.channel_codec import ChannelCodec, ChannelError
from criagent.streaming.transport.inbox import Inbox
from criagent.streaming.transport.spdy_links import StreamClosed

if TYPE_CHECKING:
    from criagent.streaming.transport.websocket import WebSocket

PROTOCOLS = ("v4.channel.k8s.io", "v4.base64.channel.k8s.io")
MOST_PORTS = 100  # of one request; channel numbers are bytes, and digits from "0" on in base64


class PortChannel:
    """One channel as a Duplex."""

    def __init__(self, socket: WebSocket, codec: ChannelCodec, number: int) -> None:
        self.inbox = Inbox()
        self._socket = socket
        self._codec = codec
        self._number = number

    @property
    def lost(self) -> bool:
        """Whether the client has left."""
        return self.inbox.lost

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""
        return await self.inbox.get()

    async def write(self, data: bytes) -> None:
        """Send `data`. Raises StreamClosed."""
        message = self._codec.encode(self._number, data)
        try:
            await self._socket.send(message, text=self._codec.text)
        except OSError:
            raise StreamClosed from None

    async def close(self) -> None:
        """Stop reading and writing; the protocol cannot close one channel in either direction."""
        self.inbox.discard()

    async def reset(self) -> None:
        """Stop reading and writing."""
        self.inbox.discard()


async def forward_channels(target: Target, ports: Sequence[int], socket: WebSocket) -> None:
    """Serve every port of the request until their connections have ended or the client leaves."""
    codec = ChannelCodec(socket.subprotocol)
    channels = [PortChannel(socket, codec, number) for number in range(2 * len(ports))]
    sorting = asyncio.create_task(_sort(socket, codec, channels))
    works: list[asyncio.Task[None]] = []
    try:
        for number, channel in enumerate(channels):
            await channel.write(ports[number // 2].to_bytes(2, "little"))
        for number, port in enumerate(ports):
            data, error = channels[2 * number : 2 * number + 2]
            work = connect(target, port, data, error)
            works.append(asyncio.create_task(work))
        waiting: set[asyncio.Future[Any]] = {asyncio.gather(*works), sorting}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    except StreamClosed:
        pass  # the client has left
    finally:
        for task in (*works, sorting):
            task.cancel()
        await asyncio.gather(*works, sorting, return_exceptions=True)


async def _sort(socket: WebSocket, codec: ChannelCodec, channels: Sequence[PortChannel]) -> None:
    """Pass each channel its bytes until the client leaves."""
    leaving = asyncio.create_task(_leave(socket, channels))
    stalled = lambda: any(channel.inbox.full for channel in channels)  # noqa: E731 - short
    beating = asyncio.create_task(socket.heartbeats(stalled))
    try:
        async for message in socket.messages():
            found = codec.decode(message)
            if found is not None and found.channel < len(channels) and not found.channel % 2:
                await channels[found.channel].inbox.put(found.data)
    except ChannelError as exc:
        await socket.fail(str(exc))
    except EOFError:
        pass  # the client has left while a port's buffer was full
    finally:
        leaving.cancel()
        beating.cancel()
        for channel in channels:
            channel.inbox.abandon()


async def _leave(socket: WebSocket, channels: Sequence[PortChannel]) -> None:
    await socket.gone.wait()
    for channel in channels:
        channel.inbox.abandon()
