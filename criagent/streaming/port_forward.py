# SPDX-License-Identifier: Apache-2.0
"""Port-forward: connections between a client's streams and ports of a pod.

Over SPDY, also within a WebSocket, a client opens pairs of a data and an error stream as it likes.
Over a bare WebSocket (v4.channel.k8s.io) there is one pair of channels per port of the request, and
the socket ends with the last of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import Protocol

import structlog

from criagent.base.errors import AgentError
from criagent.runtime.verbs.port_forward import PortForwarder
from criagent.streaming.session_log import Traffic
from criagent.streaming.transport.spdy_links import SpdyLink, Stream, StreamClosed
from criagent.streaming.transport.wire import closed

_CHUNK = 64 << 10

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Duplex(Protocol):
    """Bytes in both directions; see links.Stream."""

    @property
    def lost(self) -> bool: ...
    async def read(self) -> bytes: ...
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...
    async def reset(self) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """The pod that a session forwards to."""

    forwarder: PortForwarder
    sandbox_id: str
    traffic: Traffic


async def forward(target: Target, link: SpdyLink, pair_s: float) -> None:
    """Serve pairs until the client leaves; hundreds may be open at once."""
    halves: dict[str, dict[str, Stream]] = {}
    timers: dict[str, asyncio.TimerHandle] = {}
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def start(work: asyncio.Task[None]) -> None:
        tasks.add(work)
        work.add_done_callback(tasks.discard)

    def give_up(key: str) -> None:
        timers.pop(key, None)
        for stream in halves.pop(key, {}).values():
            start(asyncio.create_task(stream.reset()))

    try:
        while (stream := await link.accept()) is not None:
            kind, key = stream.headers.get("streamtype", ""), _pair_key(stream)
            if kind not in {"data", "error"} or kind in halves.get(key, {}):
                await stream.reset()
                continue
            pair = halves.setdefault(key, {})
            pair[kind] = stream
            if len(pair) == 1:
                timers[key] = loop.call_later(pair_s, give_up, key)
                continue
            timers.pop(key).cancel()
            del halves[key]
            port = port_number(pair["data"].headers.get("port", ""))
            work = connect(target, port, pair["data"], pair["error"])
            start(asyncio.create_task(work))
    finally:
        for timer in timers.values():
            timer.cancel()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def port_number(text: str) -> int:
    """The number of a `port` header; -1 if it is invalid."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else -1


def _pair_key(stream: Stream) -> str:
    """The request id; clients without one open the error stream right before the data stream."""
    if request := stream.headers.get("requestid"):
        return request
    error = stream.headers.get("streamtype") == "error"
    return f"stream {stream.number if error else stream.number - 2}"


async def connect(target: Target, port: int, data: Duplex, error: Duplex) -> None:
    """Serve one connection to its end; a failure to connect is reported on `error`."""
    try:
        reader, writer = await target.forwarder.connect(target.sandbox_id, port)
    except (AgentError, OSError) as exc:
        target.traffic.failed += 1
        with contextlib.suppress(StreamClosed):
            await error.write(f"error forwarding port {port}: {_reason(exc)}".encode())
            await error.close()
        await data.reset()
        return
    target.traffic.connections[port] += 1
    ways = [
        asyncio.create_task(_outward(reader, data, error, target.traffic)),
        asyncio.create_task(_inward(data, writer, target.traffic)),
    ]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        broken = any(task.exception() is not None for task in done)
        if broken:  # one end has closed, and with it the connection
            writer.transport.abort()
            await data.reset()
            await error.reset()
    finally:
        for task in ways:
            task.cancel()
        for failure in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(failure, Exception) and not isinstance(failure, OSError | StreamClosed):
                log.warning("forward_failed", error=repr(failure))
        await closed(writer)


def _reason(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return "the connection timed out"
    if isinstance(failure, OSError) and failure.errno:  # asyncio's text leaves the reason out
        return f"localhost in the pod: {os.strerror(failure.errno)}"
    return str(failure)


async def _outward(
    reader: asyncio.StreamReader, data: Duplex, error: Duplex, traffic: Traffic
) -> None:
    """Pod to client."""
    while chunk := await reader.read(_CHUNK):
        await data.write(chunk)
        traffic.sent += len(chunk)
    await data.close()
    await error.close()


async def _inward(data: Duplex, writer: asyncio.StreamWriter, traffic: Traffic) -> None:
    """Client to pod; the client's half-close is passed on."""
    while chunk := await data.read():
        traffic.received += len(chunk)
        writer.write(chunk)
        await writer.drain()
    if data.lost:
        raise StreamClosed
    writer.write_eof()
