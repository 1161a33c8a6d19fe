# SPDX-License-Identifier: Apache-2.0
"""Exec with streams: the OCI runtime's exec with pipes, or a terminal by its console socket."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack

from criagent.base.aio import alongside
from criagent.base.errors import AgentError
from criagent.kernel.process import node_ids
from criagent.model.container import Container
from criagent.process.child import Child, Pipes
from criagent.runtime.container.running import running
from criagent.runtime.exec.pipes import Pipe
from criagent.runtime.exec.plan import Command, Console, ExecPlanner, ExecRequest, Size
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import last_line
from criagent.store.containers import ContainerStore

_CONSOLE_S = 10.0
_QUEUED_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What streams a command gets: pipes, or with `tty` a terminal of that size."""

    stdin: bool
    tty: bool
    size: Size | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecProcess:
    """A running command. With a terminal, `stdin` and `stdout` are both its master, and `stderr`
    holds the OCI runtime's messages when it cannot run the command.
    """

    command: Command
    stdin: Pipe | None
    stdout: Pipe | None
    stderr: Pipe | None
    terminal: Pipe | None
    drain_s: float

    async def wait(self) -> int:
        """Exit code, 128 + number for a signal; one task may wait. Raises AgentError."""
        return await self.command.wait()

    def drain(self) -> None:
        """Call after `wait`: output ends once nothing has come for a while."""
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.drain(self.drain_s)

    def resize(self, size: Size) -> None:
        """Set the size of its terminal, if it has one."""
        if self.terminal is not None:
            self.terminal.resize(size.width, size.height)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecStreamer:
    """Starts commands in running containers."""

    store: ContainerStore
    planner: ExecPlanner
    paths: RuntimePaths
    drain_s: (
        float  # how long a background child may delay the end of output after the command's end
    )

    def check(self, container_id: str) -> Container:
        """The running container. Raises NotFoundError, WrongStateError."""
        return running(self.store, container_id)

    async def start(
        self,
        stack: AsyncExitStack,
        container_id: str,
        cmd: Sequence[str],
        streams: Streams,
    ) -> ExecProcess:
        """Start `cmd`; when `stack` unwinds before its end, all of its processes are killed.

        A command that has ended leaves its background children alone, as with ExecSync. Raises
        NotFoundError, WrongStateError, InvalidRequestError for an empty command, AgentError.
        """
        request = ExecRequest(container=self.check(container_id), cmd=cmd)
        pipes = stack.enter_context(Pipes())
        if streams.tty:
            return await self._with_terminal(stack, request, streams.size, pipes)
        stdin = self._input(request.container, pipes) if streams.stdin else None
        stdout, stderr = pipes.output(Pipe), pipes.errors(Pipe)
        return ExecProcess(
            command=self.planner.start(stack, request, pipes),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            terminal=None,
            drain_s=self.drain_s,
        )

    def _input(self, container: Container, pipes: Pipes) -> Pipe:
        """A pipe to standard input that is the container's user's, who may reopen /dev/stdin."""
        stdin = pipes.input(Pipe)
        if self.planner.runtimes[container.handler].has_own_kernel:
            return stdin  # no file of the node is reopened there
        if container.user is not None and container.init is not None:
            owner = node_ids(container.init.pid, container.user.uid, container.user.gid)
            os.fchown(pipes.stdin, *owner)
        return stdin

    async def _with_terminal(
        self, stack: AsyncExitStack, request: ExecRequest, size: Size | None, pipes: Pipes
    ) -> ExecProcess:
        path = self.paths.attach / f"c{secrets.token_hex(6)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        stack.callback(path.unlink, missing_ok=True)
        stack.callback(listener.close)
        listener.bind(str(path))
        listener.listen(1)
        errors = pipes.errors(Pipe)
        request = dataclasses.replace(request, console=Console(socket=path, size=size))
        command = self.planner.start(stack, request, pipes)
        terminal = Pipe(await _console(listener, command.runtime, errors))
        stack.callback(terminal.close)
        if size is not None:
            terminal.resize(size.width, size.height)
        return ExecProcess(
            command=command,
            stdin=terminal,
            stdout=terminal,
            stderr=errors,
            terminal=terminal,
            drain_s=self.drain_s,
        )


async def _console(listener: socket.socket, child: Child, errors: Pipe) -> int:
    """The terminal's master, which the runtime sends. Raises AgentError when it ends first."""
    loop = asyncio.get_running_loop()
    async with alongside(loop.sock_accept(listener)) as accepting, alongside(child.wait()) as ended:
        await asyncio.wait(
            {accepting, ended}, timeout=_CONSOLE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if ended.done():  # its connection may wait in the queue: a short command, or detached
            await asyncio.wait({accepting}, timeout=_QUEUED_S)
        if not accepting.done():
            child.kill(signal.SIGKILL)
            output = (await errors.read()).decode(errors="replace")
            raise AgentError(f"exec: the OCI runtime opened no terminal: {last_line(output)}")
        connection, _ = accepting.result()
    with connection:
        connection.settimeout(0)
        fds = await _descriptors(connection)
    if not fds:
        raise AgentError("exec: the OCI runtime sent no terminal")
    return fds[0]


async def _descriptors(connection: socket.socket) -> list[int]:
    """The descriptors of the first message; none when the peer closes, or sends nothing in time."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(_CONSOLE_S):
            await readable.wait()
        return socket.recv_fds(connection, 4096, 1)[1]
    except (TimeoutError, ConnectionError):
        return []
    finally:
        loop.remove_reader(connection)
