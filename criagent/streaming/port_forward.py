"""Port-forward over SPDY streams: pairs of a data and an error stream per connection."""

from __future__ import annotations

import asyncio
import contextlib

import structlog

from criagent.errors import AgentError
from criagent.runtime.port_forward import PortForwarder
from criagent.streaming.links import SpdyLink, Stream, StreamClosed

_PAIR_S = 30.0
_CHUNK = 32 << 10

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def forward(forwarder: PortForwarder, sandbox_id: str, link: SpdyLink) -> None:
    """Serve pairs until the client leaves; hundreds may be open at once."""
    halves: dict[str, dict[str, Stream]] = {}
    timers: dict[str, asyncio.TimerHandle] = {}
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()

    def give_up(key: str) -> None:
        for stream in halves.pop(key, {}).values():
            task = asyncio.create_task(stream.reset())
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    try:
        while (stream := await link.accept()) is not None:
            kind, key = stream.headers.get("streamtype", ""), _pair_key(stream)
            pair = halves.setdefault(key, {})
            if kind not in {"data", "error"} or kind in pair:
                await stream.reset()
                continue
            pair[kind] = stream
            if len(pair) == 1:
                timers[key] = loop.call_later(_PAIR_S, give_up, key)
                continue
            timers.pop(key).cancel()
            del halves[key]
            work = _one(forwarder, sandbox_id, pair["data"], pair["error"], link)
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for timer in timers.values():
            timer.cancel()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _pair_key(stream: Stream) -> str:
    """The request id; clients without one open the error stream right before the data stream."""
    if request := stream.headers.get("requestid"):
        return request
    error = stream.headers.get("streamtype") == "error"
    return f"stream {stream.number if error else stream.number - 2}"


async def _one(
    forwarder: PortForwarder, sandbox_id: str, data: Stream, error: Stream, link: SpdyLink
) -> None:
    port = data.headers.get("port", "")
    try:
        number = int(port) if port.isdigit() and len(port) < 6 else 0
        reader, writer = await forwarder.connect(sandbox_id, number)
    except (AgentError, OSError) as exc:
        with contextlib.suppress(StreamClosed):
            await error.write(f"port {port}: {exc}".encode())
            await error.close()
            await data.reset()
        link.forget(data)
        return
    try:
        inward = asyncio.create_task(_inward(data, writer))
        try:
            while chunk := await reader.read(_CHUNK):
                await data.write(chunk)
            await data.close()
            await error.close()
            await inward
        finally:
            inward.cancel()
            await asyncio.gather(inward, return_exceptions=True)
    except (StreamClosed, OSError):
        pass  # one of the two ends is gone, and with it the connection
    finally:
        link.forget(data)
        link.forget(error)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _inward(data: Stream, writer: asyncio.StreamWriter) -> None:
    """Client to pod; the client's half-close is passed on."""
    with contextlib.suppress(OSError):
        while chunk := await data.read():
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
