# SPDX-License-Identifier: Apache-2.0
"""The server side of one WebSocket (RFC 6455), on top of the sans-IO half of `websockets`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from criagent.streaming.transport.pace import pieces
from criagent.streaming.transport.wire import HEARTBEAT_S, Wire

TUNNEL = "spdy-tunnel.portforward.k8s.io"

_DATA = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})
_MAX_MESSAGE = 16 << 20  # Python's client sends everything that it is given in one message
# Kubernetes names this subprotocol with a slash, which is not a token (RFC 9110); the library
# rightly refuses; it knows the protocol by another name.
_TUNNEL = b"SPDY/3.1+portforward.k8s.io"
_TUNNEL_TOKEN = TUNNEL.encode()
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class WebSocket:
    """An accepted socket; its owner must iterate `messages`.

    `gone`: the client has hung up, perhaps before its last messages were read. `closed`: no more
    messages will come.
    """

    def __init__(self, protocol: ServerProtocol, wire: Wire) -> None:
        self.subprotocol = protocol.subprotocol or ""
        self.gone = wire.gone
        self.closed = asyncio.Event()
        self._protocol = protocol
        self._wire = wire
        self._writing = asyncio.Lock()
        self._parts = bytearray()  # of a message; fragments without a byte leave nothing here

    async def messages(self) -> AsyncIterator[bytes]:
        """Whole messages until the client leaves; pings are answered on the way."""
        try:
            for message in self._taken(b""):  # bytes that came with the request
                yield message
            while await self._goes_on():
                data = await self._wire.read()
                if not data:
                    self._protocol.receive_eof()
                for piece in pieces(data) if data else ():
                    for message in self._taken(piece):
                        yield message
                    if not await self._goes_on():
                        return
                    await self._wire.turn.over()
        except (OSError, EOFError):
            pass  # the client is gone
        finally:
            self.closed.set()

    async def send(self, message: bytes, *, text: bool = False) -> None:
        """Send one message. Raises OSError when the client has left."""
        if self.closed.is_set() or self._protocol.state is not State.OPEN:
            raise ConnectionResetError
        if text:
            self._protocol.send_text(message)
        else:
            self._protocol.send_binary(message)
        await self._flush()

    async def heartbeats(self, stalled: Callable[[], bool]) -> None:
        """Until cancelled: show the client that a server which has `stalled` is alive (RFC 6455,
        5.5.3).
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if stalled() and self._protocol.state is State.OPEN and not self._writing.locked():
                self._protocol.send_pong(b"")
                with contextlib.suppress(OSError):
                    await self._flush()

    async def close(self) -> None:
        """Send the closing frame. Raises OSError when the client has left."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
            await self._flush()

    async def fail(self, reason: str) -> None:
        """End the socket for an invalid message of the client (1002, protocol error)."""
        if self._protocol.state is State.OPEN:
            self._protocol.fail(1002, reason[:100])
            with contextlib.suppress(OSError):
                await self._flush()
        self.closed.set()

    def _taken(self, piece: bytes) -> list[bytes]:
        """The messages that are complete."""
        found = []
        with self._wire.turn:
            if piece:
                self._protocol.receive_data(piece)
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode in _DATA:
                    self._parts += event.data
                    if event.fin:
                        found.append(bytes(self._parts))
                        self._parts.clear()
        return found

    async def _goes_on(self) -> bool:
        """Answer; False when both sides have closed, or the client broke the protocol."""
        await self._flush()
        return not self._protocol.eof_sent and self._protocol.state is not State.CLOSED

    async def _flush(self) -> None:
        async with self._writing:
            data = b"".join(self._protocol.data_to_send())
            if data:
                await self._wire.write(data)


async def accept(head: bytes, subprotocols: Sequence[str], wire: Wire) -> WebSocket | None:
    """Answer the request `head` (and the bytes that follow it); None when the handshake failed.

    The client's first supported subprotocol is used; a client that requests none gets "".
    """

    def choose(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return next((name for name in offered if name in subprotocols), None)

    protocol = ServerProtocol(select_subprotocol=choose, max_size=_MAX_MESSAGE)
    protocol.receive_data(head.replace(_TUNNEL, _TUNNEL_TOKEN))
    requests = [event for event in protocol.events_received() if isinstance(event, Request)]
    if not requests:  # a request that h11 accepts and this library does not
        answer = b"".join(protocol.data_to_send())
        await wire.write(answer or _BAD_REQUEST)
        return None
    offered = requests[0].headers.get_all("Sec-WebSocket-Protocol")
    response = protocol.accept(requests[0])
    if response.status_code == 101 and offered and protocol.subprotocol is None:
        response = protocol.reject(400, f"none of {', '.join(offered)} is supported\n")
    protocol.send_response(response)
    answer = b"".join(protocol.data_to_send())
    await wire.write(answer.replace(_TUNNEL_TOKEN, _TUNNEL))
    if response.status_code != 101:
        return None
    return WebSocket(protocol, wire)
