"""The server's side of one WebSocket (RFC 6455), by the sans-IO half of `websockets`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

TUNNEL = "spdy-tunnel.portforward.k8s.io"

_MAX_MESSAGE = 1 << 20
# Kubernetes names this subprotocol with a slash, which is no token (RFC 9110) and which the library
# rightly refuses; it knows the protocol by another name.
_TUNNEL = b"SPDY/3.1+portforward.k8s.io"
_TUNNEL_TOKEN = TUNNEL.encode()


class WebSocket:
    """An accepted socket; `messages` must be kept going by somebody."""

    def __init__(
        self,
        protocol: ServerProtocol,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.subprotocol = protocol.subprotocol or ""
        self.closed = asyncio.Event()
        self._protocol = protocol
        self._reader = reader
        self._writer = writer
        self._writing = asyncio.Lock()

    async def messages(self) -> AsyncIterator[bytes]:
        """Whole messages until the client leaves; pings are answered on the way."""
        parts: list[bytes] = []
        try:
            while self._protocol.state is State.OPEN:
                for event in self._protocol.events_received():
                    if not isinstance(event, Frame):
                        continue
                    if event.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                        parts.append(bytes(event.data))
                        if event.fin:
                            yield b"".join(parts)
                            parts = []
                await self._flush()
                data = await self._reader.read(1 << 16)
                if data:
                    self._protocol.receive_data(data)
                else:
                    self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode in {Opcode.TEXT, Opcode.BINARY}:
                    yield bytes(event.data)
        except OSError:
            pass  # the client is gone
        finally:
            self.closed.set()

    async def send(self, message: bytes, *, text: bool = False) -> None:
        """One message. Raises OSError when the client is gone."""
        if self.closed.is_set() or self._protocol.state is not State.OPEN:
            raise ConnectionResetError
        if text:
            self._protocol.send_text(message)
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def close(self) -> None:
        """Say goodbye."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            for data in self._protocol.data_to_send():
                if data:
                    self._writer.write(data)
            await self._writer.drain()


async def accept(
    head: bytes,
    subprotocols: Sequence[str],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> WebSocket | None:
    """Answer the request `head` (with what follows it); None when the handshake failed.

    The client's first subprotocol that is among ours is taken; one that asks for none gets "".
    """

    def choose(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return next((name for name in offered if name in subprotocols), None)

    protocol = ServerProtocol(select_subprotocol=choose, max_size=_MAX_MESSAGE)
    protocol.receive_data(head.replace(_TUNNEL, _TUNNEL_TOKEN))
    requests = [event for event in protocol.events_received() if isinstance(event, Request)]
    if not requests:
        return None
    offered = requests[0].headers.get_all("Sec-WebSocket-Protocol")
    response = protocol.accept(requests[0])
    if response.status_code == 101 and offered and protocol.subprotocol is None:
        response = protocol.reject(400, f"none of {', '.join(offered)} is supported\n")
    protocol.send_response(response)
    for data in protocol.data_to_send():
        writer.write(data.replace(_TUNNEL_TOKEN, _TUNNEL))
    await writer.drain()
    if response.status_code != 101:
        return None
    return WebSocket(protocol, reader, writer)
