"""Exec with streams: the OCI runtime's exec with pipes, or a terminal by its console socket."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from criagent.child import Child, killed_on_exit, nothing_to_read, spawn
from criagent.errors import AgentError, WrongStateError
from criagent.kernel.process import node_ids
from criagent.model import Container, ContainerState
from criagent.runtime.container_files import ContainerFiles
from criagent.runtime.exec_cgroup import Tree, exec_cgroup
from criagent.runtime.exec_leftovers import exec_name
from criagent.runtime.oci import OciRuntime
from criagent.runtime.paths import RuntimePaths
from criagent.runtime.spec import process_spec
from criagent.runtime.streams import Pipe
from criagent.store.containers import ContainerStore

_CONSOLE_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a terminal, in characters."""

    width: int
    height: int


@dataclasses.dataclass(slots=True, kw_only=True)
class ExecProcess:
    """A running command. With a terminal, `stdin` and `stdout` are both its master."""

    child: Child
    stdin: Pipe | None
    stdout: Pipe | None
    stderr: Pipe | None
    terminal: Pipe | None
    tree: Tree
    drain_s: float

    async def wait(self) -> int:
        """Exit code, 128 + number for a signal."""
        code = await self.child.wait()
        self.tree.ended = True
        return code if code >= 0 else 128 - code

    def drain(self) -> None:
        """Call after `wait`: output ends once nothing came for a while."""
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.drain(self.drain_s)

    def resize(self, size: Size) -> None:
        """Tell its terminal, if it has one."""
        if self.terminal is not None:
            self.terminal.resize(size.width, size.height)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExecStreamer:
    """Starts commands in running containers."""

    store: ContainerStore
    files: ContainerFiles
    paths: RuntimePaths
    runtimes: Mapping[str, OciRuntime]
    drain_s: float  # how long a background child may hold output back after the command's end

    def check(self, container_id: str) -> Container:
        """The running container. Raises NotFoundError, WrongStateError."""
        row = self.store.resolve(container_id)
        if row.state is not ContainerState.RUNNING:
            raise WrongStateError(f"container {row.id} is {row.state.name.lower()}, not running")
        return row

    async def start(
        self,
        stack: AsyncExitStack,
        container_id: str,
        cmd: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        size: Size | None,
    ) -> ExecProcess:
        """Start `cmd`; when `stack` unwinds before its end, everything that it started is killed.

        A command that has ended leaves its background children alone, as with ExecSync.

        Raises NotFoundError, WrongStateError, InvalidRequestError for an empty command, AgentError.
        """
        row = self.check(container_id)
        name = exec_name()
        cgroup = f"{row.cgroup}/{name}"
        process = process_spec(self.files.process(row.id), cmd, tty=tty)
        if tty and size is not None:
            process["consoleSize"] = {"width": size.width, "height": size.height}
        file = self.paths.container(row.id) / f"{name}.json"
        stack.callback(file.unlink, missing_ok=True)
        file.write_bytes(msgspec.json.encode(process))
        tree = await stack.enter_async_context(exec_cgroup(cgroup))
        runtime = self.runtimes[row.handler]
        command: list[str | Path] = [runtime.program.executable(), f"--root={runtime.root}", "exec"]
        command += ["--cgroup", name, "--process", file]
        if tty:
            return await self._with_terminal(stack, tree, command, row, size)
        return await self._with_pipes(stack, tree, command, row, stdin=stdin)

    async def _with_pipes(
        self,
        stack: AsyncExitStack,
        tree: Tree,
        command: list[str | Path],
        row: Container,
        *,
        stdin: bool,
    ) -> ExecProcess:
        theirs: list[int] = []
        try:
            in_read, in_write = os.pipe() if stdin else (nothing_to_read(), -1)
            theirs.append(in_read)
            writer = Pipe(in_write) if stdin else None
            if writer is not None and row.user is not None and row.init is not None:
                owner = node_ids(row.init.pid, row.user.uid, row.user.gid)
                os.fchown(in_read, *owner)  # it may reopen /dev/stdin
            readers = []
            for _ in range(2):
                read, write = os.pipe()
                theirs.append(write)
                readers.append(Pipe(read))
            for pipe in (*readers, *([writer] if writer else [])):
                stack.callback(pipe.close)
            child = spawn([*command, row.id], stdin=in_read, stdout=theirs[1], stderr=theirs[2])
        finally:
            for fd in theirs:
                os.close(fd)
        await stack.enter_async_context(killed_on_exit(child))
        return ExecProcess(
            child=child,
            stdin=writer,
            stdout=readers[0],
            stderr=readers[1],
            terminal=None,
            tree=tree,
            drain_s=self.drain_s,
        )

    async def _with_terminal(
        self,
        stack: AsyncExitStack,
        tree: Tree,
        command: list[str | Path],
        row: Container,
        size: Size | None,
    ) -> ExecProcess:
        path = self.paths.attach / f"c{secrets.token_hex(6)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        stack.callback(path.unlink, missing_ok=True)
        stack.callback(listener.close)
        listener.bind(str(path))
        listener.listen(1)
        err_read, err_write = os.pipe()
        errors = Pipe(err_read)
        stack.callback(errors.close)
        try:
            child = spawn([*command, "--tty", "--console-socket", path, row.id], stderr=err_write)
        finally:
            os.close(err_write)
        await stack.enter_async_context(killed_on_exit(child))
        terminal = Pipe(await _console(listener, child, errors))
        stack.callback(terminal.close)
        if size is not None:
            terminal.resize(size.width, size.height)
        return ExecProcess(
            child=child,
            stdin=terminal,
            stdout=terminal,
            stderr=None,
            terminal=terminal,
            tree=tree,
            drain_s=self.drain_s,
        )


async def _console(listener: socket.socket, child: Child, errors: Pipe) -> int:
    """The terminal's master, which the runtime sends. Raises AgentError when it ends instead."""
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.sock_accept(listener))
    ended = asyncio.ensure_future(child.wait())
    try:
        await asyncio.wait(
            {accepting, ended}, timeout=_CONSOLE_S, return_when=asyncio.FIRST_COMPLETED
        )
        if not accepting.done():
            child.kill(signal.SIGKILL)
            words = (await errors.read()).decode(errors="replace").strip()
            raise AgentError(f"exec gave no terminal: {words or 'no reason told'}")
        connection, _ = accepting.result()
    finally:
        ended.cancel()
        if not accepting.done():
            accepting.cancel()
    with connection:
        connection.settimeout(0)
        fds = await _descriptors(connection)
    if not fds:
        raise AgentError("exec sent no terminal")
    return fds[0]


async def _descriptors(connection: socket.socket) -> list[int]:
    """What comes with the first message; none when the peer closes, or says nothing in time."""
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
