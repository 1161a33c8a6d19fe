# SPDX-License-Identifier: Apache-2.0
"""The streaming server: one-time URLs for exec, attach and port-forward, over SPDY or WebSocket.

A token is valid for one request within a minute.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import structlog

from criagent.base.certificate import Certificate
from criagent.runtime.pod.session_facts import SessionFacts, shown_command
from criagent.runtime.verbs.attach import Attacher
from criagent.runtime.verbs.exec_stream import ExecStreamer
from criagent.runtime.verbs.port_forward import PortForwarder
from criagent.streaming.channels import Channels, ClientGone
from criagent.streaming.port_channels import forward_channels
from criagent.streaming.port_forward import Target, forward
from criagent.streaming.remote_command import run_attach, run_exec
from criagent.streaming.session_log import CountedChannels, Traffic, logged
from criagent.streaming.sessions import (
    AttachSession,
    ExecSession,
    PortForwardSession,
    Session,
    Tokens,
)
from criagent.streaming.transport.pace import Pace, Turn
from criagent.streaming.transport.spdy_links import SpdyLink
from criagent.streaming.transport.wire import Hangups, Wire

if TYPE_CHECKING:
    from criagent.streaming.transport.websocket import WebSocket

_BUFFER = 256 << 10  # asyncio's reader stops at twice this

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """The listen address. Port 0 picks a free one; a certificate and key enable TLS."""

    address: str
    port: int
    url_host: str = ""  # "": the listen address, or the loopback address for a wildcard
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_min_version: Literal["1.2", "1.3"] = "1.2"
    tls_suites: tuple[str, ...] = ()  # of TLS 1.2, by OpenSSL's names; () = its defaults
    idle_timeout_s: float = 4 * 3600.0
    creation_timeout_s: float = 30.0

    def host(self) -> str:
        """The host of URLs, an IPv6 address in brackets."""
        host = self.url_host or self.address
        try:
            address = ip_address(host)
        except ValueError:
            return host
        if address.is_unspecified:  # the kubelet connects from this node
            address = ip_address("127.0.0.1" if address.version == 4 else "::1")
        return f"[{address}]" if address.version == 6 else str(address)


class StreamingServer:
    """Issues URLs and serves them."""

    def __init__(
        self,
        listener: Listener,
        streamer: ExecStreamer,
        attacher: Attacher,
        forwarder: PortForwarder,
        facts: SessionFacts,
    ) -> None:
        self.creation_timeout_s = listener.creation_timeout_s
        self._listener = listener
        self._streamer = streamer
        self._attacher = attacher
        self._forwarder = forwarder
        self._facts = facts
        self._pace = Pace()
        self._tokens = Tokens()
        self._certificate: Certificate | None = None
        self._hangups: Hangups | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return len(self._tasks)

    async def start(self) -> None:
        """Listen. Raises OSError when the address is taken or a certificate cannot be used."""
        listener = self._listener
        if listener.tls_cert is not None and listener.tls_key is not None:
            self._certificate = Certificate(
                listener.tls_cert,
                listener.tls_key,
                min_version=listener.tls_min_version,
                suites=listener.tls_suites,
            )
        self._hangups = Hangups()
        self._server = await asyncio.start_server(
            self._accept,
            listener.address,
            listener.port,
            limit=_BUFFER,
            ssl=self._certificate.context if self._certificate is not None else None,
        )
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and end every stream."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._attacher.close()
        if self._hangups is not None:
            self._hangups.close()

    async def exec(self, session: ExecSession) -> str:
        """A URL for an exec. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._streamer.check(session.container_id)
        return await self._url("exec", session)

    async def attach(self, session: AttachSession) -> str:
        """A URL for an attach. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._attacher.check(session.container_id)
        return await self._url("attach", session)

    async def port_forward(self, session: PortForwardSession) -> str:
        """A URL for a port-forward. Raises NotFoundError, WrongStateError, ExhaustedError."""
        self._forwarder.check(session.sandbox_id)
        return await self._url("portforward", session)

    async def _url(self, kind: str, session: Session) -> str:
        scheme = "http"
        if self._certificate is not None:
            scheme = "https"
            await self._certificate.refresh()
        token = self._tokens.put(session)
        return f"{scheme}://{self._listener.host()}:{self._port}/{kind}/{token}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._hangups is None:
            raise RuntimeError("the server accepted a connection before its start")
        idle_s = self._listener.idle_timeout_s
        wire = Wire(reader, writer, self._hangups, idle_s, Turn(self._pace))
        try:
            from criagent.streaming.connection import Connection

            await Connection(self, wire).serve()
        except (ConnectionError, TimeoutError, ClientGone):
            pass  # the client has left, or sends nothing
        except Exception:
            log.exception("streaming_failed")
        finally:
            await wire.close()

    async def run(self, session: ExecSession | AttachSession, channels: Channels) -> None:
        """Serve an exec or attach on opened channels."""
        counted = CountedChannels(channels)
        kind = "exec" if isinstance(session, ExecSession) else "attach"
        async with logged(kind, self._about(session), counted.ending):
            if isinstance(session, ExecSession):
                await run_exec(self._streamer, session, counted)
            else:
                await run_attach(self._attacher, session, counted)

    async def run_forward(self, session: PortForwardSession, link: SpdyLink) -> None:
        """Serve a port-forward."""
        target = Target(self._forwarder, session.sandbox_id, Traffic())
        async with logged("port_forward", self._about(session), target.traffic.ending):
            await forward(target, link, self.creation_timeout_s)

    async def run_channels(self, session: PortForwardSession, socket: WebSocket) -> None:
        """Serve a port-forward over the channels of a WebSocket."""
        target = Target(self._forwarder, session.sandbox_id, Traffic())
        async with logged("port_forward", self._about(session), target.traffic.ending):
            await forward_channels(target, session.ports, socket)

    def _about(self, session: Session) -> dict[str, object]:
        """Log facts of a session; its container may already be removed."""
        if isinstance(session, PortForwardSession):
            known = self._facts.of_sandbox_id(session.sandbox_id)
            return {**known, "ports": list(session.ports)}
        about: dict[str, object] = {**self._facts.of_container_id(session.container_id)}
        if isinstance(session, ExecSession):
            about["cmd"] = shown_command(session.cmd)
        return {**about, "tty": session.tty, "stdin": session.stdin}

    def take(self, path: str) -> Session | None:
        """The session of a request's path; the token becomes invalid."""
        kind, _, token = path.partition("?")[0].lstrip("/").partition("/")
        wanted = {
            "exec": ExecSession,
            "attach": AttachSession,
            "portforward": PortForwardSession,
        }.get(kind)
        session = self._tokens.take(token) if wanted is not None else None
        return session if wanted is not None and isinstance(session, wanted) else None
