# SPDX-License-Identifier: Apache-2.0
"""Child processes: started by vfork, awaited by pidfd, killed and reaped when their caller leaves.

`run` is for a program that is run to its end and whose output is wanted then. For anything longer
`Pipes` makes the pipes, and `spawn` starts the child that gets their other ends.

Nothing is forked from the daemon itself (no preexec_fn), and no thread waits for a child. Orphans
are reaped when they end: what a runtime that detaches has started, or what a killed monitor leaves.
No other module starts a process or makes a pipe (ruff's banned-api in pyproject.toml).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

from criagent.base.aio import finish
from criagent.kernel.memfd import data_file
from criagent.kernel.process import become_subreaper, open_pidfd
from criagent.model.common import ProcessRef
from criagent.process.pipe_ends import up_to

_GROUP_LIMIT_S, _GROUP_LOOK_S = 5.0, 0.001


class Child:
    """A child process, started by `process` or adopted. Several tasks may await `wait`."""

    def __init__(self, pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._process = process
        self._status = 0
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self.reap)
        _family.known[pid] = self

    @property
    def running(self) -> bool:
        """Whether it has not been reaped."""
        return self._pidfd >= 0

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        await self._ended.wait()
        return self._status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it, unless it is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to its process group, of which it must be the leader."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def end(self, *, group: bool = False) -> None:
        """Kill it unless it has ended, with its process group if asked for, and reap it.

        A cancellation that arrives meanwhile is re-raised afterwards.
        """
        if self.running:
            if group:
                self.kill_group()
            else:
                self.kill()
            await finish(self.wait())

    async def end_group(self) -> None:
        """Kill it unless it has ended, with its process group, of which it must be the leader, and
        return when all of it is gone. What the kernel does not let go within five seconds is left.
        """
        if not self.running:
            return
        await self.end(group=True)
        with contextlib.suppress(ProcessLookupError, TimeoutError):
            async with asyncio.timeout(_GROUP_LIMIT_S):
                while True:  # a process group has no descriptor that tells of its end
                    os.killpg(self.pid, 0)
                    await asyncio.sleep(_GROUP_LOOK_S)

    def reap(self) -> None:
        """Take the exit status of a process that has ended."""
        if self._process is not None:
            self._status = self._process.wait()
        else:
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if found is not None:
                exited = found.si_code == os.CLD_EXITED
                self._status = found.si_status if exited else -found.si_status
        del _family.known[self.pid]
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._ended.set()


class _Family:
    """The children of this process, which the kernel counts for the process, not for a loop."""

    def __init__(self) -> None:
        self.known: dict[int, Child] = {}
        self.expected = 0  # orphans that are about to be adopted

    def reap(self) -> None:
        """Reap whatever has ended."""
        while not self.expected:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if (child := self.known.get(found.si_pid)) is not None:
                child.reap()
            else:
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


_family = _Family()


def take_in_orphans() -> None:
    """From now on descendants whose parents end become our children, reaped when they end."""
    become_subreaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _family.reap)


class ExpectedOrphan:
    """An orphan that will be adopted: until then, no orphan is reaped that ends.

    Its exit status is kept by the kernel that way, and its pid stays its own. Needs
    `take_in_orphans`.
    """

    def __init__(self) -> None:
        self._open = True
        _family.expected += 1

    def adopt(self, pid: int) -> Child:
        """The orphan of that pid, which may have ended. Its parent must have ended."""
        child = Child(pid)
        self.release()
        return child

    def release(self) -> None:
        """Stop expecting it; idempotent."""
        if self._open:
            self._open = False
            _family.expected -= 1
            _family.reap()


class Closing(Protocol):
    """Our end of a pipe."""

    def close(self) -> None:
        """Close its descriptor; idempotent."""


_End = TypeVar("_End", bound=Closing)


class Pipes:
    """The pipes between this process and one child, made before the child starts.

    Each method makes a pipe and gives one end of it to `end`, which returns the object that owns
    it (`pipe_ends.up_to`, `pipe_ends.PipeWriter` or another). The child's ends are its descriptors
    `stdin`, `stdout`, `stderr` and those of `numbered`; `spawn` passes and closes them. What is
    still open is closed when the block ends, or by `close`.
    """

    def __init__(self) -> None:
        self.stdin = self.stdout = self.stderr = subprocess.DEVNULL
        self.pass_fds: tuple[int, ...] = ()
        self._child_ends: list[int] = []
        self._ends: list[Closing] = []

    def __enter__(self) -> Pipes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def input(self, end: Callable[[int], _End]) -> _End:
        """The end to write to the child's standard input."""
        self.stdin, our_end = self._pipe()
        return self._owned(end, our_end)

    def data(self, data: bytes) -> None:
        """The child's standard input is `data`, of any size, whether it reads it or not."""
        self.stdin = data_file("stdin", data)
        self._child_ends.append(self.stdin)

    def no_input(self) -> None:
        """The child's standard input is a pipe that has ended."""
        self.stdin, our_end = self._pipe()
        os.close(our_end)

    def output(self, end: Callable[[int], _End]) -> _End:
        """The end to read the child's standard output from."""
        our_end, self.stdout = self._pipe(child_writes=True)
        return self._owned(end, our_end)

    def errors(self, end: Callable[[int], _End]) -> _End:
        """The end to read the child's standard error from."""
        our_end, self.stderr = self._pipe(child_writes=True)
        return self._owned(end, our_end)

    def numbered(self, end: Callable[[int], _End]) -> tuple[_End, int]:
        """The end to read from, and the number of the descriptor that the child writes to."""
        our_end, other = self._pipe(child_writes=True)
        self.pass_fds += (other,)
        return self._owned(end, our_end), other

    def close_child_ends(self) -> None:
        """Close the child's ends in this process; idempotent."""
        while self._child_ends:
            os.close(self._child_ends.pop())

    def close(self) -> None:
        """Close both sides; idempotent."""
        self.close_child_ends()
        while self._ends:
            self._ends.pop().close()

    def _pipe(self, *, child_writes: bool = False) -> tuple[int, int]:
        """A pipe's ends to read and to write; one of them is the child's."""
        read, write = os.pipe()
        self._child_ends.append(write if child_writes else read)
        return read, write

    def _owned(self, end: Callable[[int], _End], fd: int) -> _End:
        try:
            made = end(fd)
        except BaseException:
            os.close(fd)
            raise
        self._ends.append(made)
        return made


async def ended(ref: ProcessRef) -> None:
    """Return when a process that need not be a child has ended."""
    fd = open_pidfd(ref)
    if fd is None:
        return
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
    finally:
        with contextlib.suppress(OSError):
            loop.remove_reader(fd)
        os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a child gets beside its pipes. `env` None: nothing of our environment but PATH."""

    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    new_session: bool = False  # it leads a session and a process group of its own
    inherit_stderr: bool = (
        False  # without a pipe for them, its errors go where those of the agent go
    )


_PLAIN = Options()


def spawn(
    argv: Sequence[str | Path], pipes: Pipes | None = None, options: Options = _PLAIN
) -> Child:
    """Start `argv` with its ends of `pipes`, which are closed here whatever happens.

    A stream without a pipe is /dev/null, but for standard input: that is a pipe that has ended.
    /dev/null itself would be given to the user of a container by an OCI runtime that hands its
    input on (crun 1.21 does). Raises OSError when it cannot be executed.
    """
    pipes = pipes or Pipes()
    try:
        if pipes.stdin == subprocess.DEVNULL:
            pipes.no_input()
        stderr = pipes.stderr
        if stderr == subprocess.DEVNULL and options.inherit_stderr:
            stderr = 2
        process = subprocess.Popen(
            [str(argument) for argument in argv],
            stdin=pipes.stdin,
            stdout=pipes.stdout,
            stderr=stderr,
            pass_fds=pipes.pass_fds,
            env={"PATH": os.environ.get("PATH", os.defpath)}
            if options.env is None
            else dict(options.env),
            cwd=options.cwd,
            start_new_session=options.new_session,
        )
    finally:
        pipes.close_child_ends()
    return Child(process.pid, process)


@dataclass(frozen=True, slots=True)
class Ended:
    """A child that has ended: its exit status, negative for a signal, and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def output(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    @property
    def errors(self) -> str:
        """Standard errors as text."""
        return self.stderr.decode(errors="replace")


async def run(
    argv: Sequence[str | Path],
    *,
    stdin: bytes = b"",
    limit_s: float | None,
    keep: int = 1 << 20,
    options: Options = _PLAIN,
) -> Ended:
    """Run `argv` to its end, with `stdin` as its input; the first `keep` bytes of each of its
    streams are returned.

    They are taken when it ends, not at the end of the pipes: a process that it left behind may hold
    those for ever. When `limit_s` seconds have passed, or the caller is cancelled, it is killed and
    reaped, and with `options.new_session` so is its process group. Raises OSError when it cannot be
    executed, TimeoutError.
    """
    with Pipes() as pipes:
        if stdin:
            pipes.data(stdin)
        output, errors = pipes.output(up_to(keep)), pipes.errors(up_to(keep))
        child = spawn(argv, pipes, options)
        async with killed_on_exit(child, group=options.new_session), asyncio.timeout(limit_s):
            status = await child.wait()
        return Ended(status, output.taken(), errors.taken())


@asynccontextmanager
async def killed_on_exit(child: Child, *, group: bool = False) -> AsyncIterator[Child]:
    """Kill and reap `child` when the block ends and it has not, with its group if asked for."""
    try:
        yield child
    finally:
        await child.end(group=group)
