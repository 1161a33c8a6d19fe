# SPDX-License-Identifier: Apache-2.0
"""One request to the streaming server and its upgrade; h11 parses the HTTP before that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import h11

from criagent.streaming import upgrade
from criagent.streaming.channels import (
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    Channels,
    SpdyChannels,
    Wanted,
    WebSocketChannels,
)
from criagent.streaming.port_channels import MOST_PORTS
from criagent.streaming.port_channels import PROTOCOLS as PORT_PROTOCOLS
from criagent.streaming.sessions import AttachSession, ExecSession, PortForwardSession, Session
from criagent.streaming.transport import websocket
from criagent.streaming.transport.spdy_links import SpdyLink
from criagent.streaming.transport.websocket import WebSocket
from criagent.streaming.transport.wire import Wire
from criagent.streaming.upgrade import Refusal

_HEAD_S = 30.0
_HEAD_LIMIT = 16 << 10
_LINGER_S = 10.0  # for the client to take the last bytes and close
_STALL_S = 30.0  # how long one of many forwarded connections may delay the others
_FORWARD_PROTOCOL = "portforward.k8s.io"


class Served(Protocol):
    """What a connection needs from the server."""

    creation_timeout_s: float

    def take(self, path: str) -> Session | None: ...
    async def run(self, session: ExecSession | AttachSession, channels: Channels) -> None: ...
    async def run_forward(self, session: PortForwardSession, link: SpdyLink) -> None: ...
    async def run_channels(self, session: PortForwardSession, socket: WebSocket) -> None: ...


class Connection:
    """Serves one connection to its end."""

    def __init__(self, server: Served, wire: Wire) -> None:
        self._server = server
        self._wire = wire
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)
        self._head = b""

    async def serve(self) -> None:
        """Answer the request; returns when everything has ended. Raises OSError, TimeoutError."""
        request = await self._request()
        if request is None:
            return
        if (refusal := upgrade.method_refusal(request)) is not None:
            await self._refuse(refusal)
            return
        session = self._server.take(request.target.decode("latin-1"))
        if session is None:
            await self._refuse(Refusal(404, "the token is unknown, expired or already used"))
            return
        match upgrade.transport(request):
            case "websocket":
                await self._websocket(session)
            case "spdy":
                await self._spdy(session, request)
            case Refusal() as refusal:
                await self._refuse(refusal)

    async def _request(self) -> h11.Request | None:
        async with asyncio.timeout(_HEAD_S):
            while True:
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as exc:
                    await self._refuse(Refusal(exc.error_status_hint, "malformed request"))
                    return None
                if isinstance(event, h11.Request):
                    return event
                if event is not h11.NEED_DATA:
                    return None
                data = await self._wire.read()
                self._head += data
                self._http.receive_data(data)

    async def _refuse(self, refusal: Refusal) -> None:
        with contextlib.suppress(
            h11.LocalProtocolError
        ):  # the client has closed its half meanwhile
            answer = b"".join(self._http.send(event) or b"" for event in refusal.response())
            await self._wire.write(answer)

    async def _spdy(self, session: Session, request: h11.Request) -> None:
        forwarding = isinstance(session, PortForwardSession)
        known = (_FORWARD_PROTOCOL,) if forwarding else SPDY_PROTOCOLS
        protocol = upgrade.spdy_protocol(request, known)
        if isinstance(protocol, Refusal):
            await self._refuse(protocol)
            return
        headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", protocol),
        ]
        response = h11.InformationalResponse(status_code=101, headers=headers)
        while (event := self._http.next_event()) is not h11.PAUSED and event is not h11.NEED_DATA:
            pass  # the end of a request without a body
        await self._wire.write(self._http.send(response) or b"")
        first, _ = self._http.trailing_data
        stall_s = _STALL_S if forwarding else None  # an exec's stdin delays only its own session
        link = SpdyLink(self._wire.write, self._wire.gone, self._wire.turn, stall_s=stall_s)
        await self._with_link(link, self._bytes(first), session, protocol)

    async def _with_link(
        self, link: SpdyLink, chunks: AsyncIterator[bytes], session: Session, protocol: str
    ) -> None:
        running = asyncio.create_task(link.run(chunks))
        try:
            if isinstance(session, PortForwardSession):
                await self._server.run_forward(session, link)
            else:
                channels = SpdyChannels(link, protocol)
                await channels.open(_wanted(session), self._server.creation_timeout_s)
                await self._server.run(session, channels)
                await _lingered(link.closed)
        finally:
            await _ended(running)

    async def _bytes(self, first: bytes) -> AsyncIterator[bytes]:
        if first:
            yield first
        while data := await self._wire.read():
            yield data

    async def _websocket(self, session: Session) -> None:
        if isinstance(session, PortForwardSession):
            await self._websocket_forward(session)
            return
        socket = await websocket.accept(self._head, WEBSOCKET_PROTOCOLS, self._wire)
        if socket is None:
            return
        channels = WebSocketChannels(socket, _wanted(session))
        running = asyncio.create_task(channels.run())
        try:
            await channels.open()
            await self._server.run(session, channels)
            with contextlib.suppress(OSError):
                await socket.close()
            await _lingered(socket.closed)
        finally:
            await _ended(running)

    async def _websocket_forward(self, session: PortForwardSession) -> None:
        known = [websocket.TUNNEL]
        if 0 < len(session.ports) <= MOST_PORTS:
            known += PORT_PROTOCOLS
        socket = await websocket.accept(self._head, known, self._wire)
        if socket is None:
            return
        if socket.subprotocol == websocket.TUNNEL:
            link = SpdyLink(socket.send, self._wire.gone, self._wire.turn, stall_s=_STALL_S)
            await self._with_link(link, socket.messages(), session, _FORWARD_PROTOCOL)
            return
        await self._server.run_channels(session, socket)
        with contextlib.suppress(OSError):
            await socket.close()
        await _lingered(socket.closed)


def _wanted(session: ExecSession | AttachSession) -> Wanted:
    return Wanted(
        stdin=session.stdin,
        stdout=session.stdout,
        stderr=session.stderr and not session.tty,
        tty=session.tty,
    )


async def _lingered(closed: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            await closed.wait()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
