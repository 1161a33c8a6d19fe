# SPDX-License-Identifier: Apache-2.0
"""Exec and attach: bytes between a client's channels and a process or a monitor."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import structlog

from criagent.base.errors import AgentError
from criagent.runtime.exec.pipes import Pipe
from criagent.runtime.exec.plan import Size
from criagent.runtime.oci.conmon_socket import TooSlow
from criagent.runtime.verbs.attach import Attacher, Attachment
from criagent.runtime.verbs.exec_stream import ExecProcess, ExecStreamer, Streams
from criagent.streaming.channels import Channels, ClientGone
from criagent.streaming.outcome import Outcome
from criagent.streaming.sessions import AttachSession, ExecSession

_FIRST_SIZE_S = 0.25  # clients send the size of their terminal at once, or never

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def run_exec(streamer: ExecStreamer, session: ExecSession, channels: Channels) -> None:
    """Run the session's command to its end; a client that leaves ends it."""
    try:
        async with AsyncExitStack() as stack:
            terminal = _Terminal()
            if session.tty:
                following = [asyncio.create_task(terminal.follow(channels))]
                stack.push_async_callback(_cancelled, following)
                await terminal.first_size()
            process = await streamer.start(
                stack,
                session.container_id,
                session.cmd,
                Streams(stdin=session.stdin, tty=session.tty, size=terminal.size),
            )
            terminal.connect(process)
            outcome = await _until_gone(channels, _converse(process, channels))
    except (AgentError, OSError) as exc:
        outcome = Outcome(failure=str(exc))
    if outcome is not None:
        await channels.finish(outcome)


class _Terminal:
    """The client's terminal: its current size, and the command's terminal that follows it."""

    def __init__(self) -> None:
        self.size: Size | None = None
        self._sized = asyncio.Event()
        self._process: ExecProcess | None = None

    async def follow(self, channels: Channels) -> None:
        """Take sizes as long as the client sends them."""
        async for size in channels.sizes():
            self.size = size
            self._sized.set()
            self._apply()

    async def first_size(self) -> None:
        """Wait a short time for the first size."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SIZE_S):
                await self._sized.wait()

    def connect(self, process: ExecProcess) -> None:
        """Pass sizes to the command's terminal from now on."""
        self._process = process
        self._apply()

    def _apply(self) -> None:
        if self.size is not None and self._process is not None:
            self._process.resize(self.size)


async def run_attach(attacher: Attacher, session: AttachSession, channels: Channels) -> None:
    """Show a container's output and feed its stdin until it exits or the client leaves."""
    try:
        attachment = await attacher.connect(session.container_id, stdin=session.stdin)
    except AgentError as exc:
        await channels.finish(Outcome(failure=str(exc)))
        return
    try:
        outcome = await _until_gone(channels, _show(attachment, session, channels))
    finally:
        attachment.close()
    if outcome is not None:
        await channels.finish(outcome)


async def _until_gone(
    channels: Channels, work: Coroutine[object, object, Outcome]
) -> Outcome | None:
    """The work's outcome; None when the client left first, which ends the work."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(channels.gone.wait())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    except ClientGone:
        return None
    finally:
        await _cancelled([task, gone])


async def _converse(process: ExecProcess, channels: Channels) -> Outcome:
    async def outward(pipe: Pipe | None, *, stderr: bool) -> None:
        while pipe is not None and (data := await pipe.read()):
            await channels.write(data, stderr=stderr)

    async def inward() -> None:
        if process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError):
            async for data in channels.stdin():
                await process.stdin.write(data)
        if process.terminal is None:
            process.stdin.close()
        elif not channels.gone.is_set():
            with contextlib.suppress(BrokenPipeError):
                await process.stdin.write(b"\x04")  # the end of file of a terminal

    async def ended() -> int:
        code = await process.wait()
        process.drain()  # a background child may hold the pipes indefinitely
        return code

    feeding = asyncio.create_task(inward())
    ending = asyncio.create_task(ended())
    tasks: list[asyncio.Task[Any]] = [
        ending,
        asyncio.create_task(outward(process.stdout, stderr=False)),
        asyncio.create_task(outward(process.stderr, stderr=process.terminal is None)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return Outcome(code=ending.result())
    finally:
        await _cancelled([*tasks, feeding])


async def _show(attachment: Attachment, session: AttachSession, channels: Channels) -> Outcome:
    async def inward() -> None:
        if not session.stdin:
            return
        with contextlib.suppress(OSError):
            async for data in channels.stdin():
                await attachment.write(data)
            attachment.end_stdin()

    async def resize() -> None:
        async for size in channels.sizes():
            await attachment.resize(size.width, size.height)

    tasks = [asyncio.create_task(inward()), asyncio.create_task(resize())]
    try:
        while (packet := await attachment.read()) is not None:
            stderr, data = packet
            await channels.write(data, stderr=stderr)
    except TooSlow:
        return Outcome(failure="the client reads too slowly; attach again")
    finally:
        await _cancelled(tasks)
    return Outcome()


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, ClientGone | OSError):
            log.warning("stream_failed", error=repr(result))
