"""The streaming server: one-time URLs for exec, attach and port-forward, by SPDY or WebSocket.

HTTP is h11's, and only up to the upgrade. A token is good for one request within a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import h11
import structlog

from criagent.runtime.attach import Attacher
from criagent.runtime.exec_stream import ExecStreamer
from criagent.runtime.port_forward import PortForwarder
from criagent.streaming import websocket
from criagent.streaming.channels import (
    SPDY_PROTOCOLS,
    WEBSOCKET_PROTOCOLS,
    Channels,
    ClientGone,
    SpdyChannels,
    Wanted,
    WebSocketChannels,
)
from criagent.streaming.links import SpdyLink
from criagent.streaming.port_forward import forward
from criagent.streaming.remote_command import run_attach, run_exec
from criagent.streaming.sessions import (
    AttachSession,
    ExecSession,
    PortForwardSession,
    Session,
    Tokens,
)
from criagent.streaming.websocket import WebSocket

_HEAD_S = 30.0
_HEAD_LIMIT = 16 << 10
_LINGER_S = 10.0  # for the client to take the last bytes and close
_CHUNK = 64 << 10
_FORWARD_PROTOCOL = "portforward.k8s.io"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where to listen. Port 0 takes a free one; a certificate and key make it TLS."""

    address: str
    port: int
    tls_cert: Path | None = None
    tls_key: Path | None = None
    idle_timeout_s: float = 4 * 3600.0


class StreamingServer:
    """Hands out URLs and serves them."""

    def __init__(
        self,
        listener: Listener,
        streamer: ExecStreamer,
        attacher: Attacher,
        forwarder: PortForwarder,
    ) -> None:
        self._listener = listener
        self._streamer = streamer
        self._attacher = attacher
        self._forwarder = forwarder
        self._tokens = Tokens()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken or a certificate cannot be read."""
        context = None
        if self._listener.tls_cert is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._listener.tls_cert, self._listener.tls_key)
        self._server = await asyncio.start_server(
            self._accept, self._listener.address, self._listener.port, ssl=context
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every stream."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def exec(self, session: ExecSession) -> str:
        """A URL for an exec. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._streamer.check(session.container_id)
        return self._url("exec", session)

    def attach(self, session: AttachSession) -> str:
        """A URL for an attach. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._attacher.check(session.container_id)
        return self._url("attach", session)

    def port_forward(self, session: PortForwardSession) -> str:
        """A URL for a port-forward. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._forwarder.check(session.sandbox_id)
        return self._url("portforward", session)

    def _url(self, kind: str, session: Session) -> str:
        scheme = "https" if self._listener.tls_cert is not None else "http"
        host = self._listener.address
        if ip_address(host).version == 6:
            host = f"[{host}]"
        return f"{scheme}://{host}:{self._port}/{kind}/{self._tokens.put(session)}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            await _Connection(self, reader, writer).serve()
        except (ConnectionError, TimeoutError, ClientGone, asyncio.IncompleteReadError):
            pass  # the client has left
        except Exception:
            log.exception("streaming_failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def run(self, session: ExecSession | AttachSession, channels: Channels) -> None:
        """Serve an exec or attach on opened channels."""
        if isinstance(session, ExecSession):
            await run_exec(self._streamer, session, channels)
        else:
            await run_attach(self._attacher, session, channels)

    async def run_forward(self, session: PortForwardSession, link: SpdyLink) -> None:
        """Serve a port-forward."""
        await forward(self._forwarder, session.sandbox_id, link)

    def take(self, path: str) -> Session | None:
        """The session of a request's path, once."""
        kind, _, token = path.partition("?")[0].lstrip("/").partition("/")
        wanted = {
            "exec": ExecSession,
            "attach": AttachSession,
            "portforward": PortForwardSession,
        }.get(kind)
        session = self._tokens.take(token) if wanted is not None else None
        return session if wanted is not None and isinstance(session, wanted) else None


class _Connection:
    """One request and what it is upgraded to."""

    def __init__(
        self,
        server: StreamingServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)
        self._head = b""

    async def serve(self) -> None:
        """Answer the request; returns when everything has ended."""
        request = await self._request()
        if request is None:
            return
        session = self._server.take(request.target.decode("latin-1"))
        if session is None:
            await self._refuse(404, "unknown, used or expired token")
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        upgrade = headers.get("upgrade", "").lower()
        if upgrade == "websocket":
            await self._websocket(session)
        elif upgrade == "spdy/3.1":
            await self._spdy(session, _offered(request))
        else:
            await self._refuse(400, "want an upgrade to SPDY/3.1 or websocket")

    async def _request(self) -> h11.Request | None:
        async with asyncio.timeout(_HEAD_S):
            while True:
                try:
                    event = self._http.next_event()
                except h11.RemoteProtocolError as exc:
                    await self._refuse(exc.error_status_hint, "malformed request")
                    return None
                if isinstance(event, h11.Request):
                    return event
                if event is not h11.NEED_DATA:
                    return None
                data = await self._reader.read(_CHUNK)
                self._head += data
                self._http.receive_data(data)

    async def _refuse(self, status: int, text: str, **headers: str) -> None:
        body = text.encode() + b"\n"
        fields = [("Content-Length", str(len(body))), ("Connection", "close")]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        with contextlib.suppress(h11.LocalProtocolError):
            data = self._http.send(h11.Response(status_code=status, headers=fields)) or b""
            self._writer.write(data + (self._http.send(h11.Data(data=body)) or b""))
            await self._writer.drain()

    async def _spdy(self, session: Session, offered: list[str]) -> None:
        forwarding = isinstance(session, PortForwardSession)
        known = (_FORWARD_PROTOCOL,) if forwarding else SPDY_PROTOCOLS
        if not offered:
            await self._refuse(400, "the header X-Stream-Protocol-Version is missing")
            return
        protocol = next((name for name in offered if name in known), None)
        if protocol is None:
            await self._refuse(
                403, "no common protocol", X_Accepted_Stream_Protocol_Versions=", ".join(known)
            )
            return
        headers = [
            ("Connection", "Upgrade"),
            ("Upgrade", "SPDY/3.1"),
            ("X-Stream-Protocol-Version", protocol),
        ]
        response = h11.InformationalResponse(status_code=101, headers=headers)
        while (event := self._http.next_event()) is not h11.PAUSED and event is not h11.NEED_DATA:
            pass  # the end of a request without a body
        self._writer.write(self._http.send(response) or b"")
        await self._writer.drain()
        first, _ = self._http.trailing_data

        async def send(data: bytes) -> None:
            self._writer.write(data)
            await self._writer.drain()

        link = SpdyLink(send)
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
                await channels.open(_wanted(session))
                await self._server.run(session, channels)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_S):
                        await link.closed.wait()
        finally:
            await _ended(running)

    async def _bytes(self, first: bytes) -> AsyncIterator[bytes]:
        if first:
            yield first
        while data := await self._reader.read(_CHUNK):
            yield data

    async def _websocket(self, session: Session) -> None:
        forwarding = isinstance(session, PortForwardSession)
        known = (websocket.TUNNEL,) if forwarding else WEBSOCKET_PROTOCOLS
        socket = await websocket.accept(self._head, known, self._reader, self._writer)
        if socket is None:
            return
        if isinstance(session, PortForwardSession):
            await self._tunnel(session, socket)
            return
        channels = WebSocketChannels(socket)
        running = asyncio.create_task(channels.run())
        try:
            await channels.open(_wanted(session))
            await self._server.run(session, channels)
            await _quietly(socket.close())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await socket.closed.wait()
        finally:
            await _ended(running)

    async def _tunnel(self, session: PortForwardSession, socket: WebSocket) -> None:
        link = SpdyLink(socket.send)
        await self._with_link(link, socket.messages(), session, _FORWARD_PROTOCOL)


def _offered(request: h11.Request) -> list[str]:
    names: list[str] = []
    for name, value in request.headers:
        if name == b"x-stream-protocol-version":
            names += [part.strip() for part in value.decode("latin-1").split(",") if part.strip()]
    return names


def _wanted(session: ExecSession | AttachSession) -> Wanted:
    return Wanted(
        stdin=session.stdin,
        stdout=session.stdout,
        stderr=session.stderr and not session.tty,
        tty=session.tty,
    )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _quietly(closing: Coroutine[object, object, None]) -> None:
    with contextlib.suppress(OSError):
        await closing
